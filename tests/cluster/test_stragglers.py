"""Late attempts are found by size and median, begun again, moved out of the way, given up."""

from __future__ import annotations

import pytest

from pipeline.cluster.stragglers import Patience, Stopwatch


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _watch(sizes: list[float], patience: Patience) -> tuple[Stopwatch, _Clock]:
    clock = _Clock()
    return Stopwatch(sizes, patience, clock), clock


def _one_minute_each(watch: Stopwatch, clock: _Clock, tasks: int) -> None:
    for index in range(tasks):
        watch.begun(index, f"a{index}")
        watch.started(index, f"a{index}")
    clock.now += 60.0
    for index in range(tasks):
        assert watch.finished(index, f"a{index}") == []


def test_the_limit_follows_the_size_and_the_median() -> None:
    watch, clock = _watch([60.0, 60.0, 60.0, 180.0, 1.0], Patience(factor=4, least_seconds=10))
    assert watch.limit_seconds(3) is None  # nothing is known yet
    _one_minute_each(watch, clock, 3)
    assert watch.limit_seconds(3) == pytest.approx(4 * 180)
    assert watch.limit_seconds(4) == 10  # never less


def test_waiting_for_a_place_is_not_slowness() -> None:
    watch, clock = _watch([1.0] * 4, Patience(least_seconds=1))
    _one_minute_each(watch, clock, 3)
    watch.begun(3, "a")
    clock.now += 1e6
    assert watch.due() == []
    watch.started(3, "a")
    clock.now += 299
    assert watch.due() == []
    clock.now += 2
    assert watch.due() == [(3, "begin", "a")]


def test_a_copy_that_gets_no_place_takes_the_late_ones_and_the_last_gives_up() -> None:
    watch, clock = _watch([1.0] * 4, Patience(least_seconds=1, attempts=2))
    _one_minute_each(watch, clock, 3)
    watch.begun(3, "a")
    watch.started(3, "a")
    clock.now += 301
    assert watch.due() == [(3, "begin", "a")]
    watch.begun(3, "b")
    assert watch.due() == []
    clock.now += 300
    assert watch.due() == [(3, "drop", "a")]
    assert watch.dropped(3, "a") == ["b"]
    watch.started(3, "b")
    assert watch.due() == []
    clock.now += 301
    assert watch.due() == [(3, "give up", "b")]


def test_the_first_result_leaves_the_other_attempts_to_be_ended() -> None:
    watch, _ = _watch([1.0], Patience())
    watch.begun(0, "a")
    watch.begun(0, "b")
    watch.started(0, "b")
    assert watch.finished(0, "b") == ["a"]
    assert watch.due() == []
