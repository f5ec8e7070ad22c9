"""The fan-out over Ray: order, failures, dead processes, impossible needs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lasaft.errors import ConfigError, DataError, StageError
from pipeline.cluster.connection import connected
from pipeline.cluster.fanout import Needs, run_tasks
from pipeline.cluster.stragglers import Patience
from pipeline.config import ClusterConfig

SMALL = Needs(memory_bytes=10_000_000)
QUICK = Patience(factor=3.0, least_seconds=1.0, attempts=3)


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with connected(ClusterConfig(num_cpus=2)):
        yield


def _square(value: int) -> int:
    return value * value


def _fail_on_odd(value: int) -> int:
    if value % 2:
        raise DataError(f"{value} is odd")
    return value


def _crash(_: int) -> int:
    return 1 // 0


def _die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second try"


def _threads(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def test_results_come_in_the_order_of_the_arguments() -> None:
    seen: dict[str, int] = {}
    results = run_tasks(
        _square,
        [(n,) for n in range(20)],
        names=[f"task {n}" for n in range(20)],
        needs=SMALL,
        on_done=seen.__setitem__,
    )
    assert results == [n * n for n in range(20)]
    assert seen == {f"task {n}": n * n for n in range(20)}


def test_every_failure_is_named_and_the_rest_is_done() -> None:
    done: list[str] = []
    with pytest.raises(StageError, match="2 of 5 failed") as caught:
        run_tasks(
            _fail_on_odd,
            [(n,) for n in range(5)],
            names=[f"track {n}" for n in range(5)],
            needs=SMALL,
            on_done=lambda name, _: done.append(name),
        )
    assert "track 1: 1 is odd\ntrack 3: 3 is odd" in str(caught.value)
    assert sorted(done) == ["track 0", "track 2", "track 4"]


def test_an_unexpected_error_is_named_with_its_type() -> None:
    with pytest.raises(StageError, match="one: ZeroDivisionError"):
        run_tasks(_crash, [(0,)], names=["one"], needs=SMALL)


def test_a_killed_process_is_tried_again(tmp_path: Path) -> None:
    results = run_tasks(_die_once, [(tmp_path / "marker",)], names=["one"], needs=SMALL)
    assert results == ["second try"]


def test_a_need_beyond_the_cluster_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"a task needs 64 CPUs, .* has 2 of 64 CPUs;"):
        run_tasks(_square, [(1,)], names=["one"], needs=Needs(10_000_000, cpus=64))


def test_a_task_computes_with_one_thread() -> None:
    assert run_tasks(_threads, [(0,)], names=["one"], needs=SMALL) == ["1"]


def _hang(folder: Path, number: int, times: int) -> int:
    """Leave a note; the last task sleeps for ever the first ``times`` times that it is begun."""
    notes = len(list(folder.glob(f"{number} *")))
    (folder / f"{number} {notes} {os.getpid()}").touch()
    if number == 5 and notes < times:
        time.sleep(1000)
    time.sleep(0.05)
    return number


def _hung(folder: Path, times: int) -> list[int]:
    return run_tasks(
        _hang,
        [(folder, number, times) for number in range(6)],
        names=[f"track {number}" for number in range(6)],
        needs=SMALL,
        sizes=[1.0] * 6,
        patience=QUICK,
    )


def test_a_task_that_hangs_is_begun_again_and_its_first_attempt_ended(tmp_path: Path) -> None:
    assert _hung(tmp_path, times=1) == list(range(6))
    first, second = sorted(tmp_path.glob("5 *"))
    assert len(list(tmp_path.glob("[0-4] *"))) == 5  # no other was begun twice
    processes = [int(note.name.split()[2]) for note in (first, second)]
    assert processes[0] != processes[1]
    assert _ends(processes[0])


def _ends(process: int, seconds: float = 20.0) -> bool:
    """Return whether a process is gone, or goes soon: Ray ends it in its own time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not Path(f"/proc/{process}").exists():
            return True
        time.sleep(0.1)
    return False


def test_a_task_that_always_hangs_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"1 of 6 failed.*\n.*track 5: no result, though it was"):
        _hung(tmp_path, times=99)
    assert len(list(tmp_path.glob("5 *"))) == QUICK.attempts
    assert len(list(tmp_path.glob("[0-4] *"))) == 5
