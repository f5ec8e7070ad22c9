"""How often the leaderboard's 95% intervals, tests and places hold the truth, by simulation.

    python -m benchmarks.intervals [--draws 4000]

Songs are drawn from a normal, a skewed (gamma, shape 2) and a heavy-tailed distribution (sums of
two of Student's with 3 degrees). Four sources share half of their variance, as loud and soft songs
make them; of eight systems each is a step better than the next. A percentile bootstrap, the usual
way, stands beside ours. A cell is the lowest and the highest share over the distributions.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import combinations

import numpy as np
from scipy.stats import gamma

from benchmarks.measure import Table
from pipeline.report.comparisons import Comparison, places
from pipeline.report.statistics import (
    FEWEST_TRACKS,
    How,
    Interval,
    average_interval,
    holm,
    interval,
    signed_rank,
)

_SONGS = (2, 4, 6, 8, 10, 15, 25, 50)
_SOURCES, _SYSTEMS, _STEP = 4, 8, 0.3
_RESAMPLES = 500
_PLACES = 8  # boards are ordered this much less often: that is 28 tests
# Of what a score is the sum of two, with the median and the mean of that sum.
_Law = tuple[str, tuple[float, ...], dict[How, float]]
_LAWS: tuple[_Law, ...] = (
    ("standard_normal", (), {"median": 0.0, "mean": 0.0}),
    ("gamma", (1.0, 1.0), {"median": float(gamma(2).median()), "mean": 2.0}),
    ("standard_t", (3.0,), {"median": 0.0, "mean": 0.0}),
)


def _scores(random: np.random.Generator, law: _Law, sources: int, songs: int) -> np.ndarray:
    """Return [source, song], one part of each score common to all sources of a song."""
    name, shape, _ = law
    return getattr(random, name)(*shape, (1, songs)) + getattr(random, name)(
        *shape, (sources, songs)
    )


def _bootstrap(random: np.random.Generator, law: _Law, songs: int) -> bool:
    (values,) = _scores(random, law, 1, songs)
    picks = random.integers(0, songs, (_RESAMPLES, songs))
    low, high = np.quantile(np.median(values[picks], axis=1), [0.025, 0.975])
    return _holds(Interval(low, high), law[2]["median"])


def _one(how: How, random: np.random.Generator, law: _Law, songs: int) -> bool:
    (values,) = _scores(random, law, 1, songs)
    return _holds(interval(values.tolist(), how), law[2][how])


def _average(how: How, random: np.random.Generator, law: _Law, songs: int) -> bool:
    values = _scores(random, law, _SOURCES, songs)
    return _holds(average_interval(values.tolist(), how), law[2][how])


def _difference(random: np.random.Generator, law: _Law, songs: int) -> bool:
    one, other = _scores(random, law, 2, songs)
    return _holds(signed_rank(one - other).interval, 0.0)


def _order(random: np.random.Generator, law: _Law, songs: int) -> bool:
    """Return whether the true place of every system is among those that are left open."""
    scores = _scores(random, law, _SYSTEMS, songs)
    pairs = list(combinations(range(_SYSTEMS), 2))
    found = [signed_rank(scores[a] - scores[b] + _STEP * (b - a)) for a, b in pairs]
    corrected = holm([test.p for test in found])
    tests = [
        Comparison(str(a), str(b), "", songs, songs, test.value, test.interval, test.p, p)
        for (a, b), test, p in zip(pairs, found, corrected, strict=True)
    ]
    open_places = places([str(system) for system in range(_SYSTEMS)], tests, "")
    return all(low <= int(name) + 1 <= high for name, (low, high) in open_places.items())


def _holds(ends: Interval | None, truth: float) -> bool:
    assert ends is not None
    return ends.low <= truth <= ends.high


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=4000, help="sets of songs a number")
    draws = parser.parse_args().draws
    ways = {
        "bootstrap of a median": _bootstrap,
        "median": partial(_one, "median"),
        "mean": partial(_one, "mean"),
        "average of medians": partial(_average, "median"),
        "average of means": partial(_average, "mean"),
        "difference": _difference,
        "all places": _order,
    }
    table = Table("songs", *ways)
    for songs in _SONGS:
        cells = []
        for way in ways.values():
            if songs < FEWEST_TRACKS and way is not _bootstrap:
                cells.append("none")
                continue
            random, times = np.random.default_rng(songs), draws // (_PLACES if way is _order else 1)
            held = [sum(way(random, law, songs) for _ in range(times)) / times for law in _LAWS]
            cells.append(f"{100 * min(held):.1f} to {100 * max(held):.1f}%")
        table.row(songs, *cells)


if __name__ == "__main__":
    main()
