"""Score files: museval's JSON schema to the byte, safe file names, and the keys for resuming."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lasaft.errors import DataError
from lasaft.files import atomic_write_bytes, atomic_write_json

METRICS = ("SDR", "ISR", "SIR", "SAR")
_FILE_METRICS = ("SDR", "SIR", "SAR", "ISR")  # museval's order in its files
_MUSEVAL_VERSION = "0.4.1"  # whose schema and numbers these are
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\:*?\"<>|]")
_LONGEST_NAME = 180  # bytes; leaves room for a suffix below the 255 of common file systems


@dataclass(frozen=True)
class FrameScores:
    """The scores of one track: ``values[source][metric]`` is an array [frame] in dB.

    NaN where museval has no number (a silent window) or an infinite one.
    """

    values: Mapping[str, Mapping[str, np.ndarray]]

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the scored sources, in the order of the file."""
        return tuple(self.values)


def file_names(names: Sequence[str]) -> dict[str, str]:
    """Map track names to file names that are different, short, and stay inside their folder.

    A name that is already safe stays as it is, so that museval's tools find the track by it.

    Args:
        names: track names, each once.

    Returns:
        A file name (without suffix) for each name; where two names would fall together, also on a
        file system that ignores case, both get eight digits of their own hash.
    """
    cleaned = {name: _clean(name) for name in names}
    count: dict[str, int] = {}
    for file in cleaned.values():
        count[file.casefold()] = count.get(file.casefold(), 0) + 1
    return {
        name: f"{file}-{_short_hash(name)}" if count[file.casefold()] > 1 else file
        for name, file in cleaned.items()
    }


def _clean(name: str) -> str:
    file = _UNSAFE.sub("_", name).strip(" .")
    if not file:
        return f"track-{_short_hash(name)}"
    if len(file.encode()) > _LONGEST_NAME:
        file = file.encode()[:_LONGEST_NAME].decode(errors="ignore")
        return f"{file}-{_short_hash(name)}"
    return file


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]


def scores_text(scores: FrameScores, window_seconds: float, hop_seconds: float) -> str:
    """Return ``scores`` as the text that ``museval.TrackStore.json`` gives for the same numbers.

    Source: museval 0.4.1, ``aggregate.TrackStore``: five decimals, infinities as NaN.
    """
    rounded: list[str] = []

    def mark(value: float) -> str:
        rounded.append(f"{value:.5f}" if np.isfinite(value) else "NaN")
        return "@"

    targets = [
        {
            "name": source,
            "frames": [
                {
                    "time": frame * hop_seconds,
                    "duration": window_seconds,
                    "metrics": {metric: mark(metrics[metric][frame]) for metric in _FILE_METRICS},
                }
                for frame in range(len(metrics["SDR"]))
            ],
        }
        for source, metrics in scores.values.items()
    ]
    text = json.dumps({"targets": targets, "museval_version": _MUSEVAL_VERSION}, indent=2)
    # json has no way to write 1.00000 for 1.0: each score is a mark that is replaced in order.
    numbers = iter(rounded)
    return re.sub(r'(?<="[SI][DIAS]R": )"@"', lambda _: next(numbers), text)


def write_scores(path: Path, scores: FrameScores, window: float = 1.0, hop: float = 1.0) -> None:
    """Write ``scores`` to ``path`` in museval's schema, whole or not at all.

    Args:
        path: the JSON file.
        scores: of one track, in dB.
        window: length of a frame in seconds.
        hop: distance of two frames in seconds.
    """
    atomic_write_bytes(path, scores_text(scores, window, hop).encode())


def read_scores(path: Path) -> FrameScores:
    """Read a score file that we, museval or another tool with its schema wrote.

    Raises:
        DataError: the file is missing, is no JSON, or does not follow museval's schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot read these scores ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); score this track again") from error
    try:
        values = {target["name"]: _frames_of(target) for target in content["targets"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: not in museval's schema (targets, each with a name and frames of metrics "
            f"SDR, SIR, SAR, ISR): {type(error).__name__} {error}"
        ) from error
    if not values:
        raise DataError(f"{path}: no target is scored in it; museval writes this for one source")
    return FrameScores(values)


def _frames_of(target: Mapping[str, Any]) -> dict[str, np.ndarray]:
    frames = [frame["metrics"] for frame in target["frames"]]
    if not isinstance(target["name"], str) or not frames:
        raise ValueError(f"target {target['name']!r} has no frames")
    table = {m: np.array([float(frame[m]) for frame in frames], np.float64) for m in METRICS}
    for column in table.values():
        column[np.isinf(column)] = np.nan
    return table


def write_key(path: Path, key: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write what a finished score file depends on (``key``) and what is known of it (``facts``)."""
    atomic_write_json(path, {"key": dict(key), "facts": dict(facts)})


def read_key(path: Path) -> dict[str, Any]:
    """Read what :func:`write_key` wrote: ``key`` and ``facts``.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"key": dict(content["key"]), "facts": dict(content["facts"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the key of a score file; evaluate again") from error


def facts_if_current(scores: Path, key_file: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the facts beside a score file that is whole and was made with ``key``, else None."""
    if not scores.is_file():
        return None
    try:
        known = read_key(key_file)
    except DataError:
        return None  # no key, or a damaged one: the score counts as not made
    digest = hashlib.sha256(scores.read_bytes()).hexdigest()
    same = known["key"] == json.loads(json.dumps(key)) and known["facts"].get("sha256") == digest
    return known["facts"] if same else None
