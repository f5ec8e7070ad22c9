"""The card of a network's weights: whose they are, from what data and code, and what they cost."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationInfo, field_validator

from lasaft.config import Settings, option
from lasaft.errors import CheckpointError, ConfigError, Problem
from lasaft.files import atomic_write_json, read_steadily

NOT_STATED, NOT_MEASURED = "not stated", "not measured"
# In a folder of stems.
CARDS = "card.json"
# In a checkpoint's provenance, what was stated after it was made.
STATED = "card"
_LICENCES = ("weights_license", "data_license")
_ID = r"\(*[A-Za-z0-9][A-Za-z0-9.:-]*\+?\)*"
_SPDX = re.compile(f"{_ID}( (AND|OR|WITH) {_ID})*")
_LONGEST = 200

Card = dict[str, str]
CARD_FIELDS = (
    "checkpoint", "weights_license", "training_data", "training_data_hash",
    "training_data_license", "code_commit", "seed", "training_hours", "training_energy",
    "made_from",
)  # fmt: skip


class Licences(Settings):
    """What a card cannot know by itself."""

    weights_license: str | None = option(
        None, "SPDX expression of the weights' licence (None: not stated)", role="way"
    )
    data_license: str | None = option(
        None, "SPDX expression of the training songs' licence (None: not stated)", role="way"
    )

    @field_validator(*_LICENCES)
    @classmethod
    def _is_spdx(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not (_SPDX.fullmatch(value) and len(value) <= _LONGEST):
            allowed = "an SPDX expression, such as CC-BY-NC-SA-4.0, MIT OR ISC, LicenseRef-my-own"
            raise ConfigError(Problem(str(info.field_name), repr(value), allowed))
        return value


def card_of(provenance: Mapping[str, Any], checkpoint: str | None) -> Card:
    """Return the card of weights; what nobody has stated or measured says so.

    Args:
        provenance: of a checkpoint of any version, or of an imported file.
        checkpoint: its hash.
    """
    config = _part(provenance, "config")
    data, train = _part(config, "data"), _part(config, "train")
    file = _part(provenance, "file") | _part(provenance, "hyper_parameters")
    said = {name: file.get(name, file.get("license")) for name in _LICENCES[:1]}
    for source in (_part(config, "tracking"), _part(provenance, STATED)):
        said |= {name: source[name] for name in _LICENCES if source.get(name) is not None}
    seconds, joules = provenance.get("seconds"), provenance.get("joules")
    measured = isinstance(joules, int | float)
    values = (
        checkpoint,
        said.get("weights_license"),
        data_name(data),
        provenance.get("data_hash"),
        said.get("data_license"),
        provenance.get("git_commit"),
        train.get("seed", file.get("seed")),
        f"{seconds / 3600:.3g}" if isinstance(seconds, int | float) else None,
        f"{joules / 3.6e6:.3g} kWh ({provenance.get('energy_of')})" if measured else NOT_MEASURED,
        provenance.get("imported_from", _start(train)),
    )
    return {
        name: NOT_STATED if value in (None, "") else str(value)[:_LONGEST]
        for name, value in zip(CARD_FIELDS, values, strict=True)
    }


def _start(train: Mapping[str, Any]) -> str | None:
    """Return what a training began with; None: its record does not say."""
    start = train.get("resume_from_checkpoint", ...)
    if isinstance(start, str):
        return "/".join(PurePosixPath(start).parts[-2:])
    return "random weights" if start is None else None


def _part(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = mapping.get(name)
    return found if isinstance(found, dict) else {}


def data_name(data: Mapping[str, Any]) -> str | None:
    """Return what people call the songs: their folder's name, or where their shards lie.

    Args:
        data: the options of that group, as JSON has them.
    """
    if isinstance(root := data.get("musdb_root"), str):
        return PurePosixPath(root).name
    if any(data.get(f"synthetic_{split}") for split in ("train", "valid", "test")):
        return "synthetic songs"
    shards = data.get("shards_dir")
    return "/".join(PurePosixPath(shards).parts[-2:]) if isinstance(shards, str) else None


def stated(record: Mapping[str, Any], licences: Licences) -> dict[str, Any]:
    """Return a checkpoint's record with the licences that are given; the others stay."""
    given = licences.model_dump(include=set(_LICENCES), exclude_none=True)
    provenance = _part(record, "provenance")
    said = _part(provenance, STATED) | given
    return {**record, "provenance": provenance | ({STATED: said} if said else {})}


def bare(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's record as it was before anything was stated about it."""
    provenance = {k: v for k, v in _part(record, "provenance").items() if k != STATED}
    return {**record, "provenance": provenance}


def write_cards(folder: Path, card: Card, files: Collection[str]) -> None:
    """Write which weights made these ``files`` of ``folder``, beside what is said of others."""
    others = read_cards(folder)
    others = [other | {"files": sorted(set(other["files"]) - set(files))} for other in others]
    same = {"checkpoint": card["checkpoint"]}
    mine = {name for other in others if same.items() <= other.items() for name in other["files"]}
    cards = [other for other in others if other["files"] and not same.items() <= other.items()]
    cards.append(card | {"files": sorted(mine | set(files))})
    atomic_write_json(folder / CARDS, {"format": 1, "cards": cards})


def read_cards(folder: Path) -> list[dict[str, Any]]:
    """Return the cards in a folder of stems, each with its files; none where there is no file.

    Raises:
        CheckpointError: the file is damaged, or another program's.
    """
    path = folder / CARDS
    if not path.exists():
        return []
    try:
        found = json.loads(read_steadily(path))
        cards = found["cards"] if found["format"] == 1 else []
        if not cards or any(not {"checkpoint", "files"} <= card.keys() for card in cards):
            raise ValueError("it holds no cards of format 1")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"is damaged, or not of lasaft ({error}); move it elsewhere"
        raise CheckpointError(f"{path}: {reason}") from error
    return cards
