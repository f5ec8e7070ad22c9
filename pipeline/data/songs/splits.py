"""Which track is for training, validation or the test: ``splits.yaml`` and ``mus.yaml``."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path

import yaml

from lasaft.errors import DataError
from lasaft.options import did_you_mean
from pipeline.config.plain_yaml import PLAIN_TAGS, compose_plain

SPLITS = ("train", "valid", "test")
SPLITS_FILE = "splits.yaml"
_LISTED = 100  # faults in a message


def normal(name: str) -> str:
    """Return a name in one spelling: a Mac may write an accent as two characters."""
    return unicodedata.normalize("NFC", name)


def read_splits(file: Path, known: Collection[str]) -> dict[str, str]:
    """Return the split of each track that ``splits.yaml`` names.

    Args:
        file: YAML with the lists ``train``, ``valid`` and ``test``, each of track names.
        known: the names of all tracks that there are.

    Raises:
        DataError: every problem with the file: unknown keys and tracks, tracks named twice.
    """
    lists, problems = _name_lists(file)
    problems += [
        f"{key!r} is no split; allowed: {', '.join(SPLITS)}{did_you_mean(key, SPLITS)}"
        for key in lists
        if key not in SPLITS
    ]
    by_normal = {normal(name): name for name in known}
    found: dict[str, str] = {}
    for split in SPLITS:
        for line, name in lists.get(split, []):
            if normal(name) not in by_normal:
                guess = did_you_mean(name, known) if len(problems) < _LISTED else ""
                problems.append(
                    f"line {line}: {split} names {name!r}, and there is no such track{guess}"
                )
            elif (other := found.get(by_normal[normal(name)])) is not None:
                problems.append(f"line {line}: {split} names {name!r}, which {other} has already")
            else:
                found[by_normal[normal(name)]] = split
    if not found and not problems:
        problems.append(f"names no track; allowed: lists of track names under {', '.join(SPLITS)}")
    _refuse(file, problems)
    return found


def validation_names(root: Path, training: Collection[str]) -> set[str]:
    """Return the names, in normal spelling, of the tracks of ``train/`` that are for validation.

    Args:
        root: the data set's folder; a ``mus.yaml`` in it says which under ``validation_tracks``,
            without one they are MUSDB18's own 14.
        training: the names of the tracks in ``train/``.

    Raises:
        DataError: ``mus.yaml`` is not readable, or names tracks that are not there.
    """
    musdb18 = _musdb18_validation_names()
    file = root / "mus.yaml"
    if not file.exists():
        return musdb18
    lists, problems = _name_lists(file, only="validation_tracks")
    _refuse(file, problems)
    named = [name for _, name in lists.get("validation_tracks", [])]
    present = {normal(name) for name in training}
    there = present | musdb18
    wrong = [name for name in named if normal(name) not in there]
    problems = [
        f"validation_tracks names {name!r}; allowed: the names of tracks in train/"
        f"{did_you_mean(name, training) if number < _LISTED else ''}"
        for number, name in enumerate(wrong)
    ]
    _refuse(file, problems)
    return {normal(name) for name in named}


def _musdb18_validation_names() -> set[str]:
    # The package's data file is read without importing musdb, which fails without ffmpeg.
    package = importlib.util.find_spec("musdb")
    assert package is not None
    assert package.origin is not None
    settings = Path(package.origin).parent / "configs" / "mus.yaml"
    own = yaml.safe_load(settings.read_text("utf-8"))
    return {normal(name) for name in own["validation_tracks"]}


def _refuse(file: Path, problems: list[str]) -> None:
    if len(problems) == 1:
        raise DataError(f"{file}: {problems[0]}")
    if problems:
        more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        listed = "\n  ".join([*problems[:_LISTED], *more])
        raise DataError(f"{file}: {len(problems)} faults:\n  {listed}")


def _name_lists(
    file: Path, only: str | None = None
) -> tuple[Mapping[str, list[tuple[int, str]]], list[str]]:
    """Return (line, name) of each item of each list in a YAML file, and what is wrong with it."""
    wanted = f"YAML with lists of track names under {only or ', '.join(SPLITS)}"
    try:
        root = compose_plain(file)
    except OSError as error:
        return {}, [f"not readable ({error.strerror}); allowed: {wanted}"]
    except ValueError as error:
        return {}, [f"not readable: it {error}; allowed: {wanted}"]
    if root is None:
        return {}, []
    if not isinstance(root, yaml.MappingNode):
        return {}, [f"not readable: line 1 is no mapping; allowed: {wanted}"]
    lists: dict[str, list[tuple[int, str]]] = {}
    problems: list[str] = []
    for key_node, value in root.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if only is not None and key != only:
            continue
        if key in lists:
            problems.append(f"line {line}: {key} is given twice")
        names = lists.setdefault(key, [])
        try:
            names += _names(value)
        except ValueError as error:
            problems.append(f"not readable: line {line}: {key} {error}; allowed: {wanted}")
    return lists, problems


def _names(value: yaml.Node) -> list[tuple[int, str]]:
    """Return (line, name) of each item of a list; ValueError says what is wrong with it."""
    if isinstance(value, yaml.ScalarNode) and value.value in ("", "~", "null"):
        return []  # a list that is left empty
    if not isinstance(value, yaml.SequenceNode):
        raise ValueError("is no list")
    for item in value.value:
        if not isinstance(item, yaml.ScalarNode) or item.tag not in PLAIN_TAGS:
            raise ValueError(f"has an item that is no text (line {item.start_mark.line + 1})")
    return [(item.start_mark.line + 1, item.value) for item in value.value]
