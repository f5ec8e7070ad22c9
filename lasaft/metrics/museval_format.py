"""Scores as the text of museval's JSON files, to the byte, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lasaft.errors import DataError
from lasaft.metrics.bss_eval import METRICS, Scores

LIMIT_DB = 1e6  # no score is beyond it: 64 bits of floating point end at some 6,000

MUSEVAL_VERSION = "0.4.1"  # the version whose structure and numbers these are
_ORDER = ("SDR", "SIR", "SAR", "ISR")  # museval's order of keys


def museval_json(scores: Scores, sources: Sequence[str]) -> str:
    """Return the text that ``museval.TrackStore.json`` gives for the same numbers.

    Scores have five decimals; infinite ones become NaN, which JSON writers of Python spell
    ``NaN``.

    Args:
        scores: of one track.
        sources: name of each row of ``scores``.

    Raises:
        DataError: not one name for each row.

    Source:
        museval 0.4.1, ``aggregate.TrackStore`` and ``musdb.schema.json``.
    """
    if len(sources) != len(scores.sdr) or len(set(sources)) != len(sources):
        raise DataError(f"names {list(sources)} for {len(scores.sdr)} scored sources; one each")
    tables = {name: scores.metric(name) for name in _ORDER}
    decimals: list[str] = []

    def mark(score: float) -> str:
        decimals.append(f"{score:.5f}" if np.isfinite(score) else "NaN")
        return "@"

    targets = [
        {
            "name": source,
            "frames": [
                {
                    "time": frame * scores.hop_seconds,
                    "duration": scores.window_seconds,
                    "metrics": {name: mark(tables[name][row, frame]) for name in _ORDER},
                }
                for frame in range(scores.sdr.shape[1])
            ],
        }
        for row, source in enumerate(sources)
    ]
    text = json.dumps({"targets": targets, "museval_version": MUSEVAL_VERSION}, indent=2)
    # json has no way to write 1.00000 for 1.0: each score is a mark that is replaced in order.
    remaining = iter(decimals)
    return re.sub(r'(?<="[SI][DIAS]R": )"@"', lambda _: next(remaining), text)


def read_museval_json(text: str | bytes) -> tuple[tuple[str, ...], Scores]:
    """Return the source names and scores of a museval JSON file.

    Args:
        text: of the file; of any version of museval, or of another tool with its structure.

    Returns:
        The names of the sources and their scores, infinite ones as NaN.

    Raises:
        DataError: not JSON, not museval's structure, or targets of different lengths.
    """
    return museval_scores(load_json(text))


def load_json(text: str | bytes) -> Any:
    """Return what is in the text of a JSON file.

    Raises:
        DataError: not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})") from error


def museval_scores(content: Any) -> tuple[tuple[str, ...], Scores]:
    """Return what :func:`read_museval_json` does, of a text that was parsed already."""
    try:
        return _scores_of(content["targets"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            "not museval's structure (targets, each with a name and equally many frames of SDR, "
            f"SIR, SAR, ISR): {type(error).__name__} {error}"
        ) from error


def _scores_of(targets: list[dict[str, Any]]) -> tuple[tuple[str, ...], Scores]:
    names = tuple(target["name"] for target in targets)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ValueError(f"names {list(names)}")
    tables = [
        [[float(frame["metrics"][name]) for frame in target["frames"]] for target in targets]
        for name in METRICS
    ]
    times = [float(frame["time"]) for frame in targets[0]["frames"]]
    window = float(targets[0]["frames"][0]["duration"])
    arrays = [np.array(table, np.float64) for table in tables]
    for array in arrays:
        array[np.isinf(array)] = np.nan
        if np.nanmax(np.abs(array), initial=0) > LIMIT_DB:
            raise ValueError(f"a score of {np.nanmax(np.abs(array)):g} dB")
    hop = times[1] - times[0] if len(times) > 1 else window
    return names, Scores(*arrays, window_seconds=window, hop_seconds=hop)
