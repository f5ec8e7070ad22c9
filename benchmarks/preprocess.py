"""Preprocessing: seconds of audio a core does in a second, two tasks against one, memory.

    OMP_NUM_THREADS=1 python -m benchmarks.preprocess [--tracks 6] [--seconds 60] [--n_fft 2048]

Songs are stereo wav of noise with five stems. The first figure is of one process by its CPU time,
from files to published shards; the others are of Ray tasks by the clock: give it an idle machine.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.loader import SOURCES, write_noise
from lasaft.config import ModelConfig
from pipeline.cluster.connection import connected
from pipeline.cluster.fanout import Needs, run_tasks
from pipeline.config import ClusterConfig, RunConfig
from pipeline.data.shards.build import Work, build_shards
from pipeline.data.shards.manifest import ShardSettings
from pipeline.data.shards.preprocess import works_of
from pipeline.data.songs.checks import check_tracks
from pipeline.data.songs.tracks import list_tracks

_MEMORY = 1_500_000_000
_LONG_SECONDS = 600


def works_in(songs: Path, settings: ShardSettings, folder: Path) -> list[Work]:
    """Return the tasks for all songs below ``songs``."""
    tracks = list_tracks(songs, sources=SOURCES)
    samples = check_tracks(tracks, root=songs, sample_rate=44100, channels=2)
    return [
        work
        for track, count in zip(tracks, samples, strict=True)
        for work in works_of(track, count, settings, folder)
    ]


def one_core(works: Sequence[Work], repeats: int = 3) -> float:
    """Return seconds of audio a CPU second, the best of some repeats."""
    best = 0.0
    for _ in range(repeats):
        shutil.rmtree(works[0].folder, ignore_errors=True)
        start = time.process_time()
        seconds = sum(build_shards(work).seconds for work in works)
        best = max(best, seconds / (time.process_time() - start))
    return best


def on_ray(works: Sequence[Work], cpus: float) -> float:
    """Return the seconds by the clock for all works, each task holding ``cpus``.

    The first tracks are done before, untimed: Ray ends workers that idle, and a new one needs
    seconds until it has imported torch.
    """
    folder = works[0].folder.with_name(f"ray-{cpus:g}-{time.monotonic_ns()}")
    _build_on_ray([replace(work, folder=folder / "before") for work in works[:2]], cpus)
    start = time.perf_counter()
    _build_on_ray([replace(work, folder=folder) for work in works], cpus)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return seconds


def _build_on_ray(works: Sequence[Work], cpus: float) -> None:
    run_tasks(
        build_shards,
        [(work,) for work in works],
        names=[work.name for work in works],
        needs=Needs(_MEMORY, cpus=cpus),
    )


def peak_bytes(work: Work) -> int:
    """Build in this task and return the most memory that its process ever had."""
    build_shards(work)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracks", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--n_fft", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    model = ModelConfig(n_fft=asked.n_fft, hop_length=1024)
    settings = ShardSettings.of(RunConfig(model=model))
    root = Path(tempfile.mkdtemp(prefix="preprocess-"))
    try:
        write_noise(root / "songs", asked.tracks, asked.seconds)
        write_noise(root / "long", 1, _LONG_SECONDS)
        with connected(ClusterConfig(num_cpus=2)):
            long = works_in(root / "long", settings, root / "long-shards")
            (peak,) = run_tasks(
                peak_bytes, [(long[0],)], names=["long"], needs=Needs(_MEMORY, cpus=2)
            )
            works = works_in(root / "songs", settings, root / "shards")
            times = [(on_ray(works, 2), on_ray(works, 1)) for _ in range(asked.repeats)]
        speed = one_core(works, asked.repeats)
    finally:
        shutil.rmtree(root)
    one, two = (min(column) for column in zip(*times, strict=True))
    print(f"\nn_fft {asked.n_fft}, {asked.tracks} wav tracks of {asked.seconds:g} s, 5 stems\n")
    print("| what | measured | goal |\n|---|---|---|")
    print(f"| audio seconds a CPU second, one core | {speed:.0f} | 80 (n_fft 2048) |")
    print(f"| one task, audio seconds a second | {asked.tracks * asked.seconds / one:.0f} | |")
    print(f"| two tasks against one | {one / two:.2f}x | 1.7x |")
    print(
        f"| peak memory of a task, {_LONG_SECONDS / 60:g} minutes | {peak / 1e6:.0f} MB | 800 MB |"
    )


if __name__ == "__main__":
    sys.exit(main())
