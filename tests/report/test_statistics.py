"""Intervals and tests, against scipy and against hand-worked values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.report.statistics import FEWEST_TRACKS, Interval, bootstrap, compare, holm
from tests.helpers.scores import SOURCES, scored_summary

TRACKS = [f"song {number}" for number in range(12)]


@pytest.mark.parametrize("function", [np.median, np.mean])
def test_the_interval_is_scipys(function: object) -> None:
    values = np.random.default_rng(3).normal(5, 2, 50)
    ours = bootstrap(values.tolist(), function)  # type: ignore[arg-type]
    theirs = stats.bootstrap(
        (values,), function, n_resamples=10_000, method="percentile", rng=7
    ).confidence_interval
    assert isinstance(ours, Interval)
    # Two sets of 10 000 draws: their ends differ by some hundredths of the spread (2 dB).
    assert ours.low == pytest.approx(theirs.low, abs=0.06)
    assert ours.high == pytest.approx(theirs.high, abs=0.06)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(150):
        interval = bootstrap(random.normal(4.0, 3.0, 40).tolist(), np.mean, seed)
        assert interval is not None
        hits += interval.low <= 4.0 <= interval.high
    # 95 % +- 4 standard errors of 150 trials, and a little less for 40 tracks.
    assert 0.86 <= hits / 150 <= 1.0


def test_one_number_or_none_has_no_interval() -> None:
    assert bootstrap([3.0]) is None
    assert bootstrap([None, 3.0, None]) is None
    assert bootstrap([None, 3.0, 3.0]) == Interval(3.0, 3.0)


def test_holm_is_what_the_paper_does() -> None:
    # 4 x .005, then max(that, 3 x .01), 2 x .03, 1 x .04 raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_systems_are_compared_track_by_track() -> None:
    good = scored_summary("good", 6.0, TRACKS, seed=1)
    bad = scored_summary("bad", 4.5, TRACKS, seed=2)
    tests = compare([good, bad])
    assert [t.source for t in tests] == list(SOURCES)
    pairs = [
        (good.column("drums", "SDR")[track], bad.column("drums", "SDR")[track]) for track in TRACKS
    ]
    found = next(t for t in tests if t.source == "drums")
    _, p = stats.wilcoxon(*zip(*pairs, strict=True))  # type: ignore[misc]
    assert found.p == pytest.approx(p)
    assert found.p_holm >= found.p
    assert found.tracks == len(TRACKS)
    assert found.difference == pytest.approx(np.median([a - b for a, b in pairs]))  # type: ignore[operator]


def test_too_few_tracks_and_equal_systems_are_not_tested() -> None:
    few = TRACKS[: FEWEST_TRACKS - 1]
    assert compare([scored_summary("a", 6, few, seed=1), scored_summary("b", 1, few, seed=2)]) == []
    same = scored_summary("a", 6, TRACKS, seed=1)
    assert compare([same, same.model_copy(update={"name": "b"})]) == []
    # The smallest p that the test can give falls below 0.05 at this number of tracks.
    assert stats.wilcoxon(np.arange(1, FEWEST_TRACKS + 1)).pvalue < 0.05  # type: ignore[union-attr]
    assert stats.wilcoxon(np.arange(1, FEWEST_TRACKS)).pvalue > 0.05  # type: ignore[union-attr]
