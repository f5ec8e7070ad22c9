"""Intervals and tests against scipy and hand-worked values; comparisons on common frames."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lasaft.metrics import METRICS
from pipeline.evaluation.aggregate import summarise
from pipeline.evaluation.score_files import FrameScores
from pipeline.evaluation.summary import Summary, System
from pipeline.report.comparisons import AVERAGE, Comparison, compare, places, silences
from pipeline.report.page import _contradictions, _pairs
from pipeline.report.statistics import (
    FEWEST_TRACKS,
    How,
    Interval,
    average_interval,
    holm,
    interval,
    signed_rank,
)
from tests.helpers.scores import (
    SOURCES,
    SYNTHETIC,
    board_of,
    entry_of,
    record_of,
    scored_summary,
)

TRACKS = [f"song {number}" for number in range(12)]


def _ends(found: Interval | None) -> tuple[float, float]:
    assert found is not None
    return found.low, found.high


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(3).normal(5, 2, 9)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert _ends(interval(values.tolist(), "mean")) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("tracks", [6, 7, 8, 25, 50])
def test_the_interval_of_a_median_is_between_the_exact_ones(tracks: int) -> None:
    """scipy's ends are order statistics that hold it with 95% at least; one further in, less."""
    values = np.sort(np.random.default_rng(tracks).normal(5, 2, tracks))
    low, high = _ends(interval(values.tolist(), "median"))
    exact = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    outer = values.tolist().index(exact.low)
    assert values[outer] <= low <= values[outer + 1]
    assert values[-2 - outer] <= high <= values[-1 - outer]


def test_an_interpolated_end_is_the_papers() -> None:
    """Ten songs: the first two pairs of order statistics hold it with 1022 - 20 of 1024, 914."""
    share = (1002 / 1024 - 0.95) / ((1002 - 912) / 1024)
    inner = 8 * share / (2 + 6 * share)
    ours = interval([float(v) for v in range(1, 11)], "median")
    assert _ends(ours) == pytest.approx((2 + inner, 9 - inner))


def test_an_average_of_one_source_or_of_the_same_twice_has_that_sources_interval() -> None:
    values = np.random.default_rng(5).gamma(2, 1, 15).tolist()
    hows: tuple[How, ...] = ("median", "mean")
    for how in hows:
        alone = _ends(interval(values, how))
        for columns in ([values], [values, values]):
            assert _ends(average_interval(columns, how)) == pytest.approx(alone)
    other = np.random.default_rng(6).gamma(2, 1, 15).tolist()
    low, high = _ends(average_interval([values, other], "mean"))
    (a, b), (c, d) = (_ends(interval(column, "mean")) for column in (values, other))
    assert high - low < 0.9 * (b - a + d - c) / 2


def test_below_six_numbers_there_is_no_interval() -> None:
    few = [1.0, 2.0, 3.0, 4.0, 5.0, None]
    assert interval(few, "median") is interval(few, "mean") is None
    assert average_interval([[*few[:5], 6.0], few], "median") is None
    assert interval([3.0] * FEWEST_TRACKS, "median") == Interval(3.0, 3.0)


@pytest.mark.parametrize("tracks", [6, 7, 20, 50])
def test_the_test_is_scipys_and_never_contradicts_its_interval(tracks: int) -> None:
    for seed in range(40):
        differences = np.random.default_rng(seed).normal(0.5, 1.5, tracks)
        found = signed_rank(differences)
        assert found.p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)  # type: ignore[union-attr]
        assert (found.p < 0.05) == (found.interval.low > 0 or found.interval.high < 0)
        assert found.interval.low <= found.value <= found.interval.high
        ties = np.round(differences)
        found = signed_rank(ties)
        assert (found.p < 0.05) == (found.interval.low > 0 or found.interval.high < 0)


def test_holm_is_what_the_paper_does() -> None:
    # 4 x .005, then max(that, 3 x .01), 2 x .03, 1 x .04 raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_systems_are_compared_track_by_track() -> None:
    good = scored_summary("good", 6.0, TRACKS, seed=1)
    bad = scored_summary("bad", 4.5, TRACKS, seed=2)
    tests = compare([entry_of(good), entry_of(bad)])
    assert [t.source for t in tests] == [*SOURCES, AVERAGE]
    table = np.array(
        [[good.column(s, "SDR")[t] - bad.column(s, "SDR")[t] for t in TRACKS] for s in SOURCES]  # type: ignore[operator]
    )
    for test, songs in zip(tests, [*table, table.mean(axis=0)], strict=True):
        assert test.p == pytest.approx(stats.wilcoxon(songs, method="exact").pvalue)  # type: ignore[union-attr]
        assert test.p_holm >= test.p
        assert test.tracks == len(TRACKS)
        pairs = (songs[:, None] + songs) / 2
        assert test.difference == pytest.approx(np.median(pairs[np.triu_indices(len(songs))]))
    assert [test.frames for test in tests] == [11 * 12] * 4 + [4 * 11 * 12]


def test_too_few_tracks_and_equal_systems_are_not_tested() -> None:
    few = TRACKS[: FEWEST_TRACKS - 1]
    pair = [scored_summary("a", 6, few, seed=1), scored_summary("b", 1, few, seed=2)]
    assert compare([entry_of(one) for one in pair]) == []
    same = scored_summary("a", 6, TRACKS, seed=1)
    assert compare([entry_of(same), entry_of(same.model_copy(update={"name": "b"}))]) == []


def _summary(name: str, songs: np.ndarray) -> Summary:
    """Return the summary of a system with these scores [track, frame], the same for all sources."""
    records = [
        record_of(track, FrameScores({s: dict.fromkeys(METRICS, frames) for s in SOURCES}))
        for track, frames in zip(TRACKS, songs, strict=True)
    ]
    return summarise(name, System(kind="estimates"), SYNTHETIC, records)


def test_who_falls_silent_in_the_worst_frames_gains_nothing_over_others_unseen() -> None:
    random = np.random.default_rng(0)
    honest = 5 + 6 * random.standard_normal((12, 20))
    other = honest + 0.2 + 0.1 * random.standard_normal((12, 20))
    quiet = np.where(np.argsort(np.argsort(honest)) < 10, np.nan, honest)  # in the worst ten
    silent, loud, third = (
        _summary(*pair) for pair in (("silent", quiet), ("loud", other), ("third", honest))
    )
    board = board_of(silent, loud, third)
    rows = {row.name: row for row in board.measured}
    assert board.measured[0].name == "silent"  # museval's convention stays what sorts the board
    (test,) = (
        t for t in board.tests if (t.first, t.second, t.source) == ("silent", "loud", AVERAGE)
    )
    assert test.difference == pytest.approx(-0.2, abs=0.05)
    assert test.better == "loud"
    assert test.frames == 4 * 12 * 10
    found = rows["silent"].silences["vocals"]
    rise = np.median(np.nanmedian(quiet, axis=1)) - np.median(np.median(honest, axis=1))
    assert (found.frames, found.marked) == (120, True)
    assert found.gain == pytest.approx(rise, abs=0.3)
    assert rows["loud"].silences["vocals"].frames == 0
    assert rows["silent"].silence_gain == max(s.gain for s in rows["silent"].silences.values())
    assert rows["loud"].places[AVERAGE] == (1, 1)
    assert rows["silent"].places[AVERAGE][0] == 2
    (against,) = (
        p["against"] for p in _pairs(board) if {p["first"], p["second"]} == {"silent", "loud"}
    )
    assert set(against) == {*SOURCES, AVERAGE}
    told = "\n".join(_contradictions(board))
    assert "By its medians silent is " in told
    assert f"above loud in {AVERAGE}. On the frames that both have, loud is the better" in told


def test_scores_that_lack_the_last_frame_are_compared_on_the_others() -> None:
    songs = 5 + np.random.default_rng(1).standard_normal((12, 20))
    one, short = _summary("one", songs), _summary("short", songs[:, :-1] - 1)
    assert all(test.frames % (12 * 19) == 0 for test in compare([entry_of(one), entry_of(short)]))
    assert silences(entry_of(one), [entry_of(short)])["bass"].frames == 0


def test_places_are_what_the_tests_leave_open() -> None:
    def test_of(first: str, second: str, p: float, difference: float = 1.0) -> Comparison:
        ends = Interval(difference, difference)
        return Comparison(first, second, "bass", 9, 99, difference, ends, p, p)

    tests = [test_of("a", "b", 0.001), test_of("a", "c", 0.01), test_of("c", "b", 0.3),
             test_of("d", "a", 0.001, -2.0), test_of("a", "mixture", 0.001)]  # fmt: skip
    found = places(["a", "b", "c", "d"], tests, "bass")
    assert found == {"a": (1, 1), "b": (2, 4), "c": (2, 4), "d": (2, 4)}
    assert places(["a", "b"], tests, "drums") == {"a": (1, 2), "b": (1, 2)}
