"""How sure the figures are: bootstrap intervals over tracks, and paired tests between systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pipeline.evaluation.summary import Summary

DRAWS = 10_000
CONFIDENCE = 0.95
FEWEST_TRACKS = 6  # below it no two-sided signed-rank test can reach p < 0.05: 2 / 2**5 > 0.05

METHOD = (
    f"Intervals: {CONFIDENCE:.0%} percentile bootstrap over tracks, {DRAWS} draws, fixed seed. "
    "Tests: Wilcoxon signed-rank, two-sided, paired by track, on the tracks' median scores; "
    "p-values corrected after Holm over all comparisons of one metric."
)


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of the scores (dB)."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same tracks: ``difference`` = first - second, median over tracks, dB."""

    first: str
    second: str
    source: str
    tracks: int
    difference: float
    interval: Interval | None
    p: float
    p_holm: float


def bootstrap(
    values: Sequence[float | None], function: Callable[..., np.ndarray] = np.median, seed: int = 0
) -> Interval | None:
    """Return the percentile bootstrap interval of ``function`` over tracks.

    Args:
        values: one score a track, dB; None (no number) is left out.
        function: of an array and ``axis``: ``np.median`` or ``np.mean``.
        seed: of the draws; the same values and seed give the same interval.

    Returns:
        The interval, or None below two numbers.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.
    """
    numbers = np.array([value for value in values if value is not None], np.float64)
    if len(numbers) < 2:
        return None
    picks = np.random.default_rng(seed).integers(0, len(numbers), (DRAWS, len(numbers)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(function(numbers[picks], axis=1), [tail, 1 - tail])
    return Interval(float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number by Holm's step-down method.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def compare(summaries: Sequence[Summary], metric: str = "SDR") -> list[Comparison]:
    """Return the paired test of every two systems on every source that both have.

    Only tracks on which both have a number count. A pair with fewer than ``FEWEST_TRACKS`` of
    them, or without any difference, is left out.
    """
    found: list[tuple[str, str, str, np.ndarray, float]] = []
    for one, other in combinations(summaries, 2):
        for source in (s for s in one.sources if s in other.sources):
            differences = _differences(one.column(source, metric), other.column(source, metric))
            if len(differences) < FEWEST_TRACKS or not np.any(differences):
                continue
            found.append((one.name, other.name, source, differences, _p_value(differences)))
    corrected = holm([p for *_, p in found])
    return [
        Comparison(
            first, second, source, len(d), float(np.median(d)), bootstrap(d.tolist()), p, p_holm
        )
        for (first, second, source, d, p), p_holm in zip(found, corrected, strict=True)
    ]


def _differences(one: dict[str, float | None], other: dict[str, float | None]) -> np.ndarray:
    pairs = ((value, other.get(track)) for track, value in one.items())
    return np.array([a - b for a, b in pairs if a is not None and b is not None], np.float64)


def _p_value(differences: np.ndarray) -> float:
    from scipy.stats import wilcoxon  # slow to import, and few reports have enough tracks

    return float(np.asarray(wilcoxon(differences))[1])  # (statistic, p)
