"""Score files in museval's JSON schema, safe file names, and the keys for resuming."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lasaft.errors import DataError, StageError
from lasaft.files import (
    atomic_write_bytes,
    atomic_write_json,
    file_sha256,
    read_json,
    read_steadily,
    safe_name,
)
from lasaft.metrics import METRICS, Scores, museval_json
from lasaft.metrics.museval_format import LIMIT_DB, load_json, museval_scores

# Of a whole song, with no frames; the first are in every file, the last are no decibels.
_FIRST = ("uSDR", "SI-SDR")
UNITLESS = ("logWMSE", "bleedless", "fullness")
WHOLE_METRICS = (*_FIRST, "SI-SAR", *UNITLESS)
# Of a song in which the source is silent, where no other score is defined.
LEAK = "leak"
ALL_METRICS = (*METRICS, *WHOLE_METRICS, LEAK)
_WHOLE_KEY = "whole_song"  # beside museval's own keys; its readers pass over it


@dataclass(frozen=True)
class FrameScores:
    """The scores of one track: ``values[source][metric]`` is an array [frame] in dB.

    NaN where museval has no number (a silent window) or an infinite one. ``whole[source][metric]``
    are the scores of the whole song, None where there is no finite one, with the leak of a source
    that is silent throughout; files of other tools have none, those of before fewer.
    """

    values: Mapping[str, Mapping[str, np.ndarray]]
    whole: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the scored sources, in the order of the file."""
        return tuple(self.values)

    @property
    def frames(self) -> int:
        """The number of frames of the song."""
        return len(next(iter(self.values.values()))["SDR"])


def file_names(names: Sequence[str]) -> dict[str, str]:
    """Map track names to file names that are different, short, and stay inside their folder.

    A name that is already safe stays as it is, so that museval's tools find the track by it.

    Returns:
        A file name (without suffix) for each name; where two names would fall together, also on a
        file system that ignores case, both get eight digits of their own hash.
    """
    cleaned = {name: safe_name(name) for name in names}
    count: dict[str, int] = {}
    for file in cleaned.values():
        count[file.casefold()] = count.get(file.casefold(), 0) + 1
    return {
        name: f"{file}-{_short_hash(name)}" if count[file.casefold()] > 1 else file
        for name, file in cleaned.items()
    }


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]


def write_scores(path: Path, scores: FrameScores, window: float = 1.0, hop: float = 1.0) -> None:
    """Write ``scores`` to ``path`` in museval's schema, whole or not at all.

    Scores of the whole song stand below one more key, ``whole_song``.

    Args:
        scores: of one track, in dB.
        window: length of a frame in seconds.
        hop: distance of two frames in seconds.
    """
    tables = [np.stack([frames[m] for frames in scores.values.values()]) for m in METRICS]
    text = museval_json(Scores(*tables, window_seconds=window, hop_seconds=hop), scores.sources)
    if scores.whole:
        whole = {
            source: {name: None if v is None else round(v, 5) for name, v in row.items()}
            for source, row in scores.whole.items()
        }
        entry = json.dumps({_WHOLE_KEY: whole}, indent=2).removeprefix("{\n")
        text = text.removesuffix("\n}") + ",\n" + entry
    atomic_write_bytes(path, text.encode())


def read_scores(path: Path) -> FrameScores:
    """Read a score file that we, museval or another tool with its schema wrote.

    Raises:
        DataError: the file is missing, is no JSON, or does not follow museval's schema.
    """
    try:
        content = load_json(read_steadily(path))
        names, scores = museval_scores(content)
        whole = _whole_of(content.get(_WHOLE_KEY, {}), names)
    except OSError as error:
        raise DataError(f"{path}: cannot read these scores ({error.strerror})") from error
    except DataError as error:
        raise DataError(f"{path}: {error}; score this track again") from error
    tables = {metric: scores.metric(metric) for metric in METRICS}
    values = {name: {m: tables[m][row] for m in METRICS} for row, name in enumerate(names)}
    return FrameScores(values, whole)


def _whole_of(content: Any, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    try:
        table = {
            name: {
                m: None if row[m] is None else float(row[m])
                for m in (*WHOLE_METRICS, LEAK)
                if m in row or m in _FIRST  # what a file of before lacks is not there
            }
            for name, row in content.items()
            if name in names
        }
        if any(abs(v or 0) > LIMIT_DB for row in table.values() for v in row.values()):
            raise ValueError(f"a score beyond {LIMIT_DB:g} dB")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{_WHOLE_KEY} is not a table of {', '.join(WHOLE_METRICS)} for each source "
            f"({type(error).__name__} {error})"
        ) from error
    return table


def require_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made, before hours of work that it should hold.

    Raises:
        DataError: names the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"{folder}: cannot write here ({error.strerror}); nothing was scored"
        ) from error


def write_key(path: Path, key: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write what a finished score file depends on (``key``) and what is known of it (``facts``)."""
    atomic_write_json(path, {"key": dict(key), "facts": dict(facts)})


def read_key(path: Path) -> dict[str, Any]:
    """Read what :func:`write_key` wrote: ``key`` and ``facts``.

    Raises:
        StageError: it is missing or damaged.
    """
    content = read_json(path, {"key", "facts"}, "evaluate again")
    if not isinstance(content["key"], dict) or not isinstance(content["facts"], dict):
        raise StageError(f"{path}: is damaged, not the key of a score file; evaluate again")
    return content


def facts_if_current(
    scores: Path, key_file: Path, key: Mapping[str, Any], since: int
) -> dict[str, Any] | None:
    """Return the facts beside a score file that is whole and was made with ``key``, else None.

    Scoring of another version will do, from ``since`` on.
    """
    if not scores.is_file():
        return None
    try:
        known = read_key(key_file)
    except StageError:
        return None  # no key, or a damaged one: the score counts as not made
    made, wanted = known["key"], json.loads(json.dumps(key))
    key_is_same = made | {"scoring": wanted["scoring"]} == wanted
    recent = key_is_same and since <= made.get("scoring", 0) <= wanted["scoring"]
    same = recent and known["facts"].get("sha256") == file_sha256(scores)
    return known["facts"] if same else None


def was_of_other_track(key_file: Path, key: Mapping[str, Any]) -> bool:
    """Return whether a score file differs from one with ``key`` in the track's content alone."""
    try:
        known = read_key(key_file)["key"]
    except StageError:
        return False
    same = json.loads(json.dumps(key)) | {"scoring": known.get("scoring")}
    return known != same and known | {"track": same["track"]} == same
