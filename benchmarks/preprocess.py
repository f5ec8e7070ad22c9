"""Preprocessing: seconds of audio a core does in a second, two tasks against one, memory.

    OMP_NUM_THREADS=1 python -m benchmarks.preprocess [--tracks 6] [--seconds 60] [--n_fft 2048]

Songs are stereo wav of noise with five stems. The first figure is of one process by its CPU time,
from files to published shards; the others are of Ray tasks by the clock: give it an idle machine.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.measure import Figures, Table, best_of, peak_bytes, timed
from lasaft.config import ModelConfig
from pipeline.cluster.connection import connected
from pipeline.cluster.fanout import Needs, run_tasks
from pipeline.config import ClusterConfig, DataConfig, RunConfig
from pipeline.data.shards.build import Work, build_shards
from tests.helpers.shards import works_by_track
from tests.helpers.wavs import write_track


def works_in(root: Path, n_fft: int, tracks: int, seconds: float) -> list[Work]:
    """Write tracks of noise below ``root``; return the tasks that preprocess them."""
    for number in range(tracks):
        write_track(root / "songs" / "train" / str(number), seconds, first_seed=10 * number)
    model, data = ModelConfig(n_fft=n_fft, hop_length=1024), DataConfig(musdb_root=root / "songs")
    config = RunConfig(output_dir=root, model=model, data=data)
    return list(chain.from_iterable(works_by_track(config)))


def in_this_process(works: Sequence[Work]) -> Figures:
    """Return the seconds of all works, one after the other."""
    shutil.rmtree(works[0].folder, ignore_errors=True)
    return timed(lambda: [build_shards(work) for work in works])


def on_ray(works: Sequence[Work], cpus: float) -> Figures:
    """Return the seconds of all works as Ray tasks that hold so many ``cpus``.

    The first tracks are done before, untimed: Ray ends workers that idle, and a new one needs
    seconds until it has imported torch.
    """
    folder = works[0].folder.with_name(f"ray-{cpus:g}-{time.monotonic_ns()}")
    run_on_ray(build_shards, [replace(work, folder=folder / "before") for work in works[:2]], cpus)
    again = [replace(work, folder=folder) for work in works]
    spent = timed(lambda: run_on_ray(build_shards, again, cpus))
    shutil.rmtree(folder)
    return spent


def run_on_ray(task: Callable[[Work], Any], works: Sequence[Work], cpus: float) -> list[Any]:
    names, needs = [work.name for work in works], Needs(1_500_000_000, cpus=cpus)
    return run_tasks(task, [(work,) for work in works], names=names, needs=needs)


def memory_of(work: Work) -> int:
    """Build in this task and return the most memory that its process ever had."""
    build_shards(work)
    return peak_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tracks", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--n_fft", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, n_fft = Path(folder), options.n_fft
        long = works_in(root / "long", n_fft, 1, 600.0)
        works = works_in(root / "short", n_fft, options.tracks, options.seconds)
        with connected(ClusterConfig(num_cpus=2)):
            (peak,) = run_on_ray(memory_of, long[:1], 2)
            ways = {"one": partial(on_ray, works, 2), "two": partial(on_ray, works, 1)}
            best = best_of(options.repeats, ways)
        best |= best_of(options.repeats, {"core": partial(in_this_process, works)})
    one, two, core = best["one"]["wall"], best["two"]["wall"], best["core"]["cpu"]
    audio = options.tracks * options.seconds
    tracks = f"{options.tracks} wav tracks of {options.seconds:g} s, 5 stems"
    print(f"\nn_fft {options.n_fft}, {tracks}\n")
    rows = Table("what", "measured", "goal")
    rows.row("audio seconds a CPU second, one core", f"{audio / core:.0f}", "80 (n_fft 2048)")
    rows.row("one task, audio seconds a second", f"{audio / one:.0f}", "")
    rows.row("two tasks against one", f"{one / two:.2f}x", "1.7x")
    rows.row("peak memory of a task, 10 minutes", f"{peak / 1e6:.0f} MB", "800 MB")


if __name__ == "__main__":
    main()
