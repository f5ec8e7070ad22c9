"""What the fan-out over tracks gains and costs: ``python -m benchmarks.fanout [--seconds 60]``.

The same tracks are scored (mixture as the estimate, BSS Eval with its filters) as Ray tasks on one
and on two CPUs of a private local cluster, one thread each, after a warm-up of every worker. The
table shows how many times faster two workers are than one, the last line what a task without work
costs, as a share of a track's.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from lasaft.metrics import bss_eval
from pipeline.cluster.connection import connected
from pipeline.cluster.fanout import Needs, run_tasks
from pipeline.config import ClusterConfig

_RATE = 44100
_NEEDS = Needs(memory_bytes=10_000_000)


def _score(seed: int, seconds: float) -> float:
    """Score one made-up track of four stereo sources; return the seconds that it took."""
    random = np.random.default_rng(seed)
    references = random.standard_normal((4, 2, int(seconds * _RATE))).astype(np.float32)
    mixture = references.sum(axis=0)
    start = time.perf_counter()
    bss_eval(references, [mixture] * 4, sample_rate=_RATE)
    return time.perf_counter() - start


def _nothing(_: int) -> None:
    """Stand for a task that has no work: what is left is the fan-out itself."""


def _fan_out(cpus: int, tracks: int, seconds: float) -> tuple[float, float, float]:
    """Return wall seconds, CPU seconds of the driver, and the mean seconds of work a track."""
    with connected(ClusterConfig(num_cpus=cpus)):
        warm = [(1000 + n, 1.0) for n in range(2 * cpus)]
        run_tasks(_score, warm, names=["warm-up"] * len(warm), needs=_NEEDS)
        wall, cpu = time.perf_counter(), time.process_time()
        work = run_tasks(
            _score,
            [(n, seconds) for n in range(tracks)],
            names=[f"track {n}" for n in range(tracks)],
            needs=_NEEDS,
            sizes=[seconds] * tracks,
        )
        return time.perf_counter() - wall, time.process_time() - cpu, float(np.mean(work))


def _overhead(tasks: int = 200) -> float:
    """Return the wall seconds that a task without work takes on one CPU."""
    with connected(ClusterConfig(num_cpus=1)):
        for count in (20, tasks):
            start = time.perf_counter()
            run_tasks(
                _nothing,
                [(n,) for n in range(count)],
                names=[str(n) for n in range(count)],
                needs=_NEEDS,
                sizes=[1.0] * count,
            )
        return (time.perf_counter() - start) / tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a track")
    parser.add_argument("--tracks", type=int, default=8, help="how many tracks")
    options = parser.parse_args()
    print("| workers | wall, s | CPU of the driver, s | work a track, s | faster than one |")
    print("|---|---|---|---|---|")
    base = 0.0
    for cpus in (1, 2):
        wall, cpu, work = _fan_out(cpus, options.tracks, options.seconds)
        base = base or wall
        print(f"| {cpus} | {wall:.2f} | {cpu:.2f} | {work:.2f} | {base / wall:.2f}x |")
    each = _overhead()
    print(
        f"\nScheduling: {1e3 * each:.1f} ms a task, {100 * each / work:.2f}% of the work of a track"
    )


if __name__ == "__main__":
    main()
