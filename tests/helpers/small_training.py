"""A small training of two processes through Ray, to be broken, moved and timed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.config import ClusterConfig, DataConfig, RunConfig, to_json
from pipeline.config.folders import RunFolder
from pipeline.training.loop.journal import read_history
from pipeline.training.loop.worker import run_session
from tests.helpers.hosts import Hosts
from tests.helpers.shards import make_shards
from tests.helpers.songs import make_musdb

WORKER = "RayTrainWorker"  # in the name of every process that trains
LIMIT_SECONDS = 600.0
_MODEL = {
    "n_fft": 256,
    "hop_length": 128,
    "num_frame": 32,
    "n_blocks": 3,
    "internal_channels": 4,
    "n_internal_layers": 2,
    "num_tdfs": 2,
    "dk": 4,
}
_TRAIN = {
    "batch_size": 4,
    "steps_per_epoch": 100,
    "max_epochs": 2,
    "lr": 0.01,
    "mid_epoch_seconds": 0.05,
    "train_loss": "spec_l1",
    "world_size": 2,
    "max_failures": 10,
}


def config_of(root: Path, name: str, **train: Any) -> RunConfig:
    """Return a training below ``root`` that saves its state after almost every step."""
    tree = {
        "output_dir": root / name,
        "model": _MODEL,
        "data": {"shards_dir": root / "shards"},
        "train": _TRAIN | train,
        "tracking": {"log": False},
        "cluster": {"num_cpus": 2},
    }
    return RunConfig.model_validate(tree)


def make_data(root: Path, like: RunConfig, **songs: Any) -> None:
    """Write synthetic songs to ``root/songs``, and to ``root/shards`` what ``like`` reads."""
    data = DataConfig(musdb_root=make_musdb(root / "songs", test=0, **songs))
    make_shards(like.model_copy(update={"output_dir": root, "data": data}))


def prepare(root: Path) -> None:
    """Make the data of all trainings below ``root``."""
    make_data(root, config_of(root, "any"), seconds=2.0)


def session(config: RunConfig) -> None:
    """Train in this process, without Ray."""
    run_session(config, torch.device("cpu"))


def words_of(config: RunConfig) -> list[str]:
    """Write the configuration beside its run; return the words after a job's name that use it."""
    file = RunFolder.of(config).root.with_suffix(".json")
    file.write_text(to_json(config))
    return ["--preset", str(file)]


def train_on(hosts: Hosts, config: RunConfig) -> subprocess.Popen[str]:
    """Start a training on the head's host; its processes go where Ray has room for them."""
    words = words_of(config.model_copy(update={"cluster": ClusterConfig()}))
    return hosts.start(0, sys.executable, "-m", "jobs.train", *words, "--address", hosts.head)


def workers_on(hosts: Hosts) -> int:
    """Return how many processes train on the hosts."""
    commands = [hosts.commands(host) for host in range(1, hosts.count)]
    return sum(WORKER in command for found in commands for command in found.values())


_forgotten: dict[Path, int] = {}


def step_of(config: RunConfig) -> int:
    """Return the newest step in the training's journal, 0 before the first."""
    journal = RunFolder.of(config).metrics
    if not journal.exists() or journal.stat().st_mtime_ns <= _forgotten.get(journal, 0):
        return 0
    return max((record["step"] for record in read_history(journal)), default=0)


def forget_step(config: RunConfig) -> None:
    """Let :func:`step_of` return 0 until the journal is written to again."""
    journal = RunFolder.of(config).metrics
    _forgotten[journal] = journal.stat().st_mtime_ns if journal.exists() else 0


def wait_for(done: Callable[[], bool], what: str, limit_seconds: float = LIMIT_SECONDS) -> None:
    """Return when ``done``; raise TimeoutError after the limit."""
    end = time.monotonic() + limit_seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} within {limit_seconds:.0f} s")
        time.sleep(0.02)
