"""Score files checked with museval itself."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from lasaft.metrics import METRICS
from pipeline.data.songs.tracks import read_track
from pipeline.evaluation.scenarios import Contest
from pipeline.evaluation.score_files import FrameScores, read_key, read_scores, write_key
from pipeline.evaluation.score_track import SystemJob, TrackJob, attempt_of, make_estimates

# Largest difference from museval in dB that counts as agreement: our files round to 5 decimals
# (5e-6); museval's own ISR, SIR and SAR move by up to 4e-5 when sources or channels are permuted.
TOLERANCE_DB = 1e-4


def verify_track(job: TrackJob, system: SystemJob) -> dict[str, Any]:
    """Score one track with museval and compare with the score file; call it in a task.

    A score file that agreed before is not scored again: its record is kept beside its key.

    Returns:
        The track, the largest difference of each metric in dB, the largest of all, and whether
        all are within ``TOLERANCE_DB`` with NaN in the same places.
    """
    known = read_key(job.key_file(system))
    if known["facts"].get("verified"):
        return known["facts"]["verified"]
    audio = read_track(job.track)
    waves = make_estimates(job, system, audio)
    theirs: dict[str, Mapping[str, np.ndarray]] = {}
    for contest in attempt_of(job, waves, audio).contests():
        theirs |= museval_scores(contest, audio.sample_rate)
    ours = read_scores(job.score_file(system))
    difference = {metric: _difference(ours, theirs, metric) for metric in METRICS}
    largest = max(difference.values())
    record = {
        "track": job.track.name,
        "system": system.name,
        "difference_db": difference,
        "largest_db": largest,
        "tolerance_db": TOLERANCE_DB,
        "agrees": bool(largest <= TOLERANCE_DB),
    }
    if record["agrees"]:
        write_key(job.key_file(system), known["key"], {**known["facts"], "verified": record})
    return record


def museval_scores(contest: Contest, sample_rate: int) -> dict[str, dict[str, np.ndarray]]:
    """Return museval's own scores [frame] in dB of each kept source and metric, frames of 1 s.

    Infinite ones are NaN, as in museval's files.
    """
    truth = np.stack([wave.T.astype(np.float64) for wave in contest.references])
    tried = np.stack([wave.T.astype(np.float64) for wave in contest.estimates])
    with _names_of_old_numpy(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # divisions by zero, as in silent frames
        *columns, _ = _museval_metrics().bss_eval(
            truth, tried, window=sample_rate, hop=sample_rate,
            compute_permutation=False, framewise_filters=False, bsseval_sources_version=False,
        )  # fmt: skip
    table = dict(zip(("SDR", "ISR", "SIR", "SAR"), columns, strict=True))
    for column in table.values():
        column[np.isinf(column)] = np.nan
    rows = {name: contest.names.index(name) for name in contest.kept}
    return {name: {m: table[m][row] for m in METRICS} for name, row in rows.items()}


@cache
def _museval_metrics() -> ModuleType:
    """Return museval's metrics module, loaded alone: its package wants ffmpeg when imported."""
    package = importlib.util.find_spec("museval")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).with_name("metrics.py")
    spec = importlib.util.spec_from_file_location("museval_metrics", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _names_of_old_numpy() -> Iterator[None]:
    """Give museval the name ``np.linalg.linalg`` back, under which it catches LinAlgError.

    Without it an exactly singular system ends in AttributeError, not in its least squares.
    """
    linalg: Any = np.linalg
    missing = not hasattr(linalg, "linalg")
    if missing:
        linalg.linalg = SimpleNamespace(LinAlgError=np.linalg.LinAlgError)
    try:
        yield
    finally:
        if missing:
            del linalg.linalg


def _difference(
    ours: FrameScores, theirs: Mapping[str, Mapping[str, np.ndarray]], metric: str
) -> float:
    """Return the largest difference in dB; infinite if NaN is not in the same places."""
    largest = 0.0
    for source in ours.sources:
        one = ours.values[source][metric]
        if source not in theirs:  # it is silent throughout
            if not np.isnan(one).all():
                return float("inf")
            continue
        other = theirs[source][metric]
        if one.shape != other.shape or not np.array_equal(np.isnan(one), np.isnan(other)):
            return float("inf")
        numbers = ~np.isnan(one)
        if numbers.any():
            largest = max(largest, float(np.abs(one - other)[numbers].max()))
    return largest
