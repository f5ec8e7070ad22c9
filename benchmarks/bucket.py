"""A run in a bucket beside one in a folder: training, epoch by epoch, and having nothing to do.

    python -m benchmarks.bucket [--turns 3] [--latency 0.1]

Both train on the same songs, in turns, the bucket that of an S3-like server on this machine, which
has one CPU to itself, since a store takes none from a training. In the first epoch the shards come
from the store, later from the node's cache. Then ``jobs.run`` ends the last run of each, and has
nothing left to do when it is given again, while each request takes ``--latency`` seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from moto.moto_server.werkzeug_app import DomainDispatcherApplication as Application

from benchmarks.measure import Table
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from tests.helpers import ROOT
from tests.helpers.object_store import address, object_store

_EPOCHS, _BATCH = 3, 8
_SONGS = [
    "--synthetic_train", "4", "--synthetic_valid", "1", "--synthetic_test", "1",
    "--synthetic_seconds", "20",
]  # fmt: skip
_TRAINING = [
    "--steps_per_epoch", "50", "--max_epochs", str(_EPOCHS), "--batch_size", str(_BATCH),
    "--num_frame", "32", "--n_blocks", "5",
]  # fmt: skip
_WORDS = {"preprocess": _SONGS, "train": _TRAINING, "run": [*_SONGS, *_TRAINING]}


def run(job: str, place: str, cache: Path, cpus: list[int]) -> float:
    """Give a job of the run at ``place``, on these CPUs; return how long it took."""
    command = ["taskset", "-c", ",".join(map(str, cpus)), sys.executable, "-m", f"jobs.{job}"]
    command += ["--preset", "demo", *_WORDS[job], "--num_cpus", str(len(cpus))]
    command += ["--output_dir", place]
    settings = {**os.environ, "XDG_CACHE_HOME": str(cache), "MLFLOW_TRACKING_URI": ""}
    start = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=settings, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def windows_per_second(place: str, cache: Path) -> list[float]:
    """Return how many windows a second each epoch of a run was trained with."""
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache)}):
        found = RunFolder.of(RunConfig.model_validate({"output_dir": place})).metrics
    speeds = [
        one for one in map(json.loads, found.read_text().splitlines()) if one["kind"] == "speed"
    ]
    steps = np.array([one["step"] for one in speeds])
    seconds = steps / np.array([one["values"]["speed/steps_per_second"] for one in speeds])
    return list(np.diff(steps, prepend=0) / np.diff(seconds, prepend=0) * _BATCH)


def main() -> None:
    """Measure both and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind")
    parser.add_argument(
        "--latency", type=float, default=0.1, help="seconds a request takes at last"
    )
    options = parser.parse_args()
    *cpus, last = sorted(os.sched_getaffinity(0))
    if not cpus:
        parser.error("this machine has one CPU; the store needs one and the training another")
    os.sched_setaffinity(0, {last})
    requests, answer, latency = 0, Application.__call__, 0.0

    def slowly(app: Application, environ: dict[str, Any], start: Any) -> Any:
        nonlocal requests
        requests += 1
        time.sleep(latency)
        return answer(app, environ, start)

    best: dict[str, list[float]] = {}
    patch = mock.patch.object(Application, "__call__", slowly)
    with tempfile.TemporaryDirectory() as name, object_store() as port, patch:
        root = cache = Path(name)
        places: dict[str, str] = {}
        for turn in range(options.turns):
            places = {"folder": str(root / f"run{turn}"), "bucket": address(f"run{turn}", port)}
            for kind, place in places.items():
                cache = root / f"cache{turn}"
                for job in ("preprocess", "train"):
                    run(job, place, cache, cpus)
                speeds = windows_per_second(place, cache)
                before = best.get(kind, speeds)
                best[kind] = [max(pair) for pair in zip(before, speeds, strict=True)]
            if turn < options.turns - 1:
                shutil.rmtree(root / f"run{turn}")
        table = Table("windows/s in epoch", *map(str, range(1, _EPOCHS + 1)))
        for kind, speeds in best.items():
            table.row(kind, *(f"{speed:.1f}" for speed in speeds))
        ratios = (b / f for f, b in zip(best["folder"], best["bucket"], strict=True))
        table.row("bucket / folder", *(f"{ratio:.3f}" for ratio in ratios))
        print()
        table = Table("nothing to do", "seconds", "requests")
        for kind, place in places.items():
            latency = 0.0
            run("run", place, cache, cpus)
            latency, requests = options.latency, 0
            table.row(kind, f"{run('run', place, cache, cpus):.1f}", requests)


if __name__ == "__main__":
    main()
