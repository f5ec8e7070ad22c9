"""Scores in the JSON structure of museval, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lasaft.errors import DataError
from lasaft.metrics.bss_eval import METRICS, Scores

MUSEVAL_VERSION = "0.4.1"  # the version whose structure and numbers these are
_ORDER = ("SDR", "SIR", "SAR", "ISR")  # museval's order of keys
_DIGITS = 5


def museval_json(scores: Scores, sources: Sequence[str]) -> dict[str, Any]:
    """Return the scores of a track as museval's ``TrackStore`` holds them in its JSON.

    Scores have five decimals; infinite ones become NaN, which JSON writers of Python spell
    ``NaN``. The numbers are floats.

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
    targets = [
        {
            "name": source,
            "frames": [
                {
                    "time": frame * scores.hop_seconds,
                    "duration": scores.window_seconds,
                    "metrics": {name: _rounded(tables[name][row, frame]) for name in _ORDER},
                }
                for frame in range(scores.sdr.shape[1])
            ],
        }
        for row, source in enumerate(sources)
    ]
    return {"targets": targets, "museval_version": MUSEVAL_VERSION}


def _rounded(score: float) -> float:
    return round(float(score), _DIGITS) if math.isfinite(score) else math.nan


def read_museval_json(content: Mapping[str, Any]) -> tuple[list[str], Scores]:
    """Return the source names and scores of a decoded museval JSON.

    Args:
        content: what ``json.loads`` made of the file; any version of museval.

    Returns:
        The names of the sources and their scores, infinite ones as NaN.

    Raises:
        DataError: not museval's structure, no targets, or targets of different lengths.
    """
    try:
        targets = content["targets"]
        names = [str(target["name"]) for target in targets]
        tables = {
            name: [
                [float(frame["metrics"][name]) for frame in target["frames"]] for target in targets
            ]
            for name in METRICS
        }
        times = [float(frame["time"]) for frame in targets[0]["frames"]]
        window = float(targets[0]["frames"][0]["duration"])
        arrays = [np.array(tables[name], np.float64) for name in METRICS]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            "not museval's structure (targets with equally many frames of SDR, ISR, SIR, SAR): "
            f"{type(error).__name__} {error}"
        ) from error
    for array in arrays:
        array[np.isinf(array)] = np.nan
    hop = times[1] - times[0] if len(times) > 1 else window
    return names, Scores(*arrays, window_seconds=window, hop_seconds=hop)
