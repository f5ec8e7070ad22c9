"""How sure the figures are: intervals over tracks, and paired tests between systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
# Below it nothing can be said with 95%: not even all songs agree often enough, 2 / 2**5 > 0.05.
FEWEST_TRACKS = 6

METHOD = (
    f"Intervals ({CONFIDENCE:.0%}) are about other songs like these: of a median the order "
    "statistics between which it lies (Hettmansperger and Sheather 1986), of a mean Student's, of "
    "the average over sources both of these put together with the correlation of the sources "
    f"(Zou and Donner 2008). Fewer than {FEWEST_TRACKS} songs give none. "
    "Differences: every two systems are compared on the frames in which both have a number: the "
    "median of these frames in each song, and of the songs' differences the Hodges-Lehmann "
    "estimate, its interval and p from Wilcoxon's signed-rank test, two-sided; p-values corrected "
    "after Holm over all comparisons. A place is what the corrected tests leave open."
)
How = Literal["median", "mean"]
Values = Sequence[float | None]


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of the scores (dB)."""

    low: float
    high: float


def interval(values: Values, how: How) -> Interval | None:
    """Return the interval of the median or the mean over tracks.

    Args:
        values: one score a track, dB; None (no number) is left out.
        how: which of the two.

    Returns:
        The interval, or None below ``FEWEST_TRACKS`` numbers.
    """
    numbers = np.sort([value for value in values if value is not None])
    if len(numbers) < FEWEST_TRACKS:
        return None
    return _of_median(numbers) if how == "median" else _of_mean(numbers)


def _of_mean(numbers: np.ndarray) -> Interval:
    from scipy.stats import t

    count, mean = len(numbers), float(numbers.mean())
    half = t.ppf((1 + CONFIDENCE) / 2, count - 1) * numbers.std(ddof=1) / np.sqrt(count)
    return Interval(mean - float(half), mean + float(half))


def _of_median(numbers: np.ndarray) -> Interval:
    """Interpolate between the two pairs of order statistics around the confidence.

    Source: Hettmansperger and Sheather, Confidence intervals based on interpolated order
    statistics, 1986.
    """
    from scipy.stats import binom

    count = len(numbers)
    # The pair (depth, count + 1 - depth) holds the median with this probability; depth from 1.
    holds = 1 - 2 * binom.cdf(np.arange(count // 2 + 1), count, 0.5)
    depth = int(np.sum(holds >= CONFIDENCE))
    share = (holds[depth - 1] - CONFIDENCE) / (holds[depth - 1] - holds[depth])
    inner = (count - depth) * share / (depth + (count - 2 * depth) * share)
    low, high = numbers[depth - 1 : depth + 1], numbers[::-1][depth - 1 : depth + 1]
    weights = [1 - inner, inner]
    return Interval(float(low @ weights), float(high @ weights))


def average_interval(columns: Sequence[Values], how: How) -> Interval | None:
    """Return the interval of the mean over sources of their medians or means over tracks.

    Args:
        columns: [source][track] scores in dB, the tracks in one order.
        how: median or mean over tracks.

    Source: Zou and Donner, Construction of confidence limits about effect measures, 2008.
    """
    table = np.array([[np.nan if v is None else v for v in c] for c in columns], np.float64)
    function = np.nanmedian if how == "median" else np.nanmean
    found = [interval(column, how) for column in columns]
    if any(one is None for one in found):
        return None
    centres = function(table, axis=1)
    ends = np.array([(one.low, one.high) for one in found if one is not None]).T
    offsets = table - centres[:, None]
    alike = _correlations(np.sign(offsets) if how == "median" else offsets)
    low, high = (np.sqrt(arm @ alike @ arm) / len(arm) for arm in np.abs(ends - centres))
    return Interval(float(centres.mean() - low), float(centres.mean() + high))


def _correlations(offsets: np.ndarray) -> np.ndarray:
    """Return the correlation of each two rows, from the tracks where both have a number."""
    there = np.isfinite(offsets)
    known = np.where(there, offsets, 0.0)
    squares = known**2
    scale = (squares @ there.T) * (there @ squares.T)
    return np.divide(known @ known.T, np.sqrt(scale), out=np.eye(len(known)), where=scale > 0)


@dataclass(frozen=True)
class Difference:
    """What the songs say of two systems: the typical difference in dB, its interval, and p."""

    value: float
    interval: Interval
    p: float


def signed_rank(differences: np.ndarray) -> Difference:
    """Return the Hodges-Lehmann estimate with the interval and the p of the signed-rank test.

    Both are from the exact distribution of the test's statistic, so that the interval is without
    zero exactly where p is below 0.05. A difference of zero counts against both sides.

    Args:
        differences: one a track, in dB, ``FEWEST_TRACKS`` or more.

    Source: Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3.1 to 3.3.
    """
    rows, columns = np.triu_indices(len(differences))
    walsh = np.sort((differences[rows] + differences[columns]) / 2)
    below = _signed_rank_chances(len(differences))
    p = 2 * below[min(np.sum(walsh >= 0), np.sum(walsh <= 0))]
    depth = int(np.sum(2 * below < 1 - CONFIDENCE))
    ends = Interval(float(walsh[depth - 1]), float(walsh[-depth]))
    return Difference(float(np.median(walsh)), ends, float(min(1.0, p)))


@lru_cache
def _signed_rank_chances(count: int) -> np.ndarray:
    """Return how likely the statistic of ``count`` differences is at most 0, 1, ... by chance."""
    chance = np.ones(1)
    for rank in range(1, count + 1):
        chance = np.convolve(chance, np.bincount([0, rank], [0.5, 0.5]))
    return np.cumsum(chance)


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
