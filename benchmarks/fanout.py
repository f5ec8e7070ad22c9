"""What the fan-out over tracks gains and costs: ``python -m benchmarks.fanout [--seconds 60]``.

The same tracks are scored (mixture as the estimate, BSS Eval with its filters) as Ray tasks on one
and on two CPUs of a private local cluster, one thread each, after a warm-up of every worker. The
table shows how many times faster two workers are than one, the last line what a task without work
costs, as a share of a track's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.measure import Table, timed
from lasaft.metrics import bss_eval
from pipeline.cluster.connection import connected
from pipeline.cluster.fanout import Needs, run_tasks
from pipeline.config import ClusterConfig

_RATE = 44100
_IDLE_TASKS = 200


def score(seed: int, seconds: float) -> float:
    """Score one made-up track of four stereo sources; return the seconds that it took."""
    random = np.random.default_rng(seed)
    references = random.standard_normal((4, 2, int(seconds * _RATE))).astype(np.float32)
    estimates = [references.sum(axis=0)] * 4
    return timed(lambda: bss_eval(references, estimates, sample_rate=_RATE))["wall"]


def nothing(_: int) -> None:
    """Stand for a task that has no work: what is left is the fan-out itself."""


def run(task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run a task for each of these arguments, all of one size."""
    names, sizes = map(str, range(len(arguments))), [1.0] * len(arguments)
    return run_tasks(task, arguments, names=[*names], needs=Needs(10_000_000), sizes=sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a track")
    parser.add_argument("--tracks", type=int, default=8, help="how many tracks")
    options = parser.parse_args()
    rows = Table("workers", "wall, s", "CPU of the driver, s", "work a track, s", "faster than one")
    one, work = 0.0, [0.0]

    def score_all() -> None:
        nonlocal work
        work = run(score, [(number, options.seconds) for number in range(options.tracks)])

    for cpus in (1, 2):
        with connected(ClusterConfig(num_cpus=cpus)):
            run(score, [(1000 + number, 1.0) for number in range(2 * cpus)])
            spent = timed(score_all)
        wall = spent["wall"]
        one = one or wall
        cells = (wall, spent["cpu"], mean(work))
        rows.row(cpus, *(f"{cell:.2f}" for cell in cells), f"{one / wall:.2f}x")
    with connected(ClusterConfig(num_cpus=1)):
        run(nothing, [(number,) for number in range(20)])
        idle = timed(lambda: run(nothing, [(number,) for number in range(_IDLE_TASKS)]))
    each = idle["wall"] / _IDLE_TASKS
    share = 100 * each / mean(work)
    print(f"\nScheduling: {1e3 * each:.1f} ms a task, {share:.2f}% of the work of a track")


if __name__ == "__main__":
    main()
