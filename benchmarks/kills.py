"""Kills trainings at random moments and compares what they end with to an undisturbed one.

    python -m benchmarks.kills --kills 50 --seed 0

Two processes train on this machine through ``jobs.train``. At random steps a worker, all workers,
the driver or the raylet gets SIGKILL, or the command gets Ctrl-C; where it ends with that, it is
given again. At the end weights, optimiser and history must be equal to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from benchmarks.loader import make_shards
from lasaft.config import ModelConfig
from pipeline.config import (
    ClusterConfig,
    DataConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    to_json,
)
from pipeline.config.folders import RunFolder
from pipeline.training.loop.journal import CLOCK_KINDS, read_history
from pipeline.training.loop.state_file import load_state
from tests.helpers.songs import make_musdb

KINDS = ("worker", "workers", "driver", "raylet", "interrupt")
# After these the command has ended, and is given again.
ENDINGS = ("driver", "raylet", "interrupt")
KILLS_A_TRAINING = 10
WORKER = "RayTrainWorker"
_LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class Kill:
    """One kill, and how long it took until the training had gone beyond the step again."""

    kind: str
    step: int
    seconds: float


def config_of(root: Path, name: str, **train: object) -> RunConfig:
    """Return a small training of two processes that saves its state after almost every step."""
    settings: dict[str, object] = {
        "batch_size": 4, "steps_per_epoch": 100, "max_epochs": 2, "lr": 0.01,
        "mid_epoch_seconds": 0.05, "train_loss": "spec_l1", "world_size": 2,
        "max_failures": KILLS_A_TRAINING,
    }  # fmt: skip
    return RunConfig(
        output_dir=root / name,
        model=ModelConfig(
            n_fft=256, hop_length=128, num_frame=32, n_blocks=3, internal_channels=4,
            n_internal_layers=2, num_tdfs=2, dk=4,
        ),
        data=DataConfig(shards_dir=root / "shards"),
        train=TrainConfig.model_validate(settings | train),
        tracking=TrackingConfig(log=False),
        cluster=ClusterConfig(num_cpus=2),
    )  # fmt: skip


def prepare(root: Path) -> None:
    """Make songs and shards for the trainings below ``root``."""
    make_musdb(root / "songs", train=2, valid=1, test=0, seconds=2.0, seed=0)
    config = config_of(root, "shards only")
    with_songs = config.model_copy(update={"data": DataConfig(musdb_root=root / "songs")})
    make_shards(with_songs, root / "shards")


def command_of(config: RunConfig) -> list[str]:
    """Write the configuration beside its run, and return the command that trains as it says."""
    file = config.output_dir.with_suffix(".json")
    file.write_text(to_json(config))
    return [sys.executable, "-m", "jobs.train", "--preset", str(file)]


def start(config: RunConfig) -> subprocess.Popen[bytes]:
    """Give the command that trains; it may be given again and again."""
    return subprocess.Popen(
        command_of(config),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def train(config: RunConfig) -> None:
    """Train undisturbed."""
    with start(config) as command:
        assert command.wait(_LIMIT_SECONDS) == 0


def step_of(config: RunConfig) -> int:
    """Return the newest step that the training has shown, 0 before the first."""
    file = RunFolder.of(config).training / "progress.json"
    try:
        return json.loads(file.read_bytes())["step"]
    except FileNotFoundError:
        return 0


def wait_for(done: Callable[[], bool], what: str) -> None:
    """Return when ``done``; raise TimeoutError after ten minutes."""
    end = time.monotonic() + _LIMIT_SECONDS
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} within {_LIMIT_SECONDS:.0f} s")
        time.sleep(0.02)


def kill(kind: str, driver: int, chance: random.Random) -> None:
    """Send SIGKILL to what ``kind`` names among the processes of the command ``driver``."""
    if kind == "driver":
        os.kill(driver, signal.SIGKILL)
        return
    if kind == "interrupt":  # a terminal tells all processes of the command
        os.killpg(driver, signal.SIGINT)
        return
    word = "raylet/raylet" if kind == "raylet" else WORKER
    found = processes(driver, word)
    assert found, f"no {word} is left to be killed"
    for process in [chance.choice(found)] if kind == "worker" else found:
        process.kill()


def processes(driver: int, word: str) -> list[psutil.Process]:
    """Return those below the process ``driver`` whose command has ``word`` in it."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if word in (words[0] if word.startswith("raylet") and words else " ".join(words)):
            found.append(process)
    return found


def disturb(config: RunConfig, kinds: Sequence[str], chance: random.Random) -> Iterator[Kill]:
    """Train with kills at random steps; yield each once the training is beyond it again."""
    total = config.train.max_epochs * (config.train.steps_per_epoch or 0)
    # In the last steps a kill could come too late.
    steps = sorted(chance.sample(range(1, total * 3 // 4), len(kinds)))
    command = start(config)
    try:
        for kind, step in zip(kinds, steps, strict=True):
            wait_for(lambda step=step: step_of(config) >= step, f"step {step}")
            time.sleep(chance.uniform(0, 0.3))
            reached, began = step_of(config), time.monotonic()
            workers = processes(command.pid, WORKER)
            kill(kind, command.pid, chance)
            # Workers outlive the raylet by many seconds, in which they could reach the end of so
            # short a training. What is shown then goes back with the training.
            _, alive = psutil.wait_procs(workers, chance.uniform(0, 1))
            for worker in alive if kind in ENDINGS else ():
                worker.kill()
            psutil.wait_procs(workers, _LIMIT_SECONDS)
            (RunFolder.of(config).training / "progress.json").unlink(missing_ok=True)
            if kind in ENDINGS:
                command.wait(_LIMIT_SECONDS)
                command = start(config)
            wait_for(lambda reached=reached: step_of(config) >= reached, f"step {reached} again")
            yield Kill(kind, reached, time.monotonic() - began)
        assert command.wait(_LIMIT_SECONDS) == 0, "the last command failed"
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
        command.wait()


def differences(ours: RunConfig, theirs: RunConfig) -> list[str]:
    """Return the names of what is not equal to the last bit; empty if all is."""
    first, second = (load_state(RunFolder.of(each).state) for each in (ours, theirs))
    assert first is not None
    assert second is not None
    names = first.tensors.keys() | second.tensors.keys()
    wrong = [
        name
        for name in sorted(names)
        if name not in first.tensors
        or name not in second.tensors
        or not torch.equal(first.tensors[name], second.tensors[name])
    ]
    return wrong + (["history"] if _history(ours) != _history(theirs) else [])


def _history(config: RunConfig) -> list[dict[str, object]]:
    records = read_history(RunFolder.of(config).metrics)
    return [
        {key: value for key, value in record.items() if key != "seconds"}
        for record in records
        if record["kind"] not in CLOCK_KINDS
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="no new training after these")
    options = parser.parse_args()
    # A shell starts background commands deaf to Ctrl-C, and theirs would be too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    failures, seconds = 0, []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root)
        train(config_of(root, "undisturbed"))
        print("| training | killed | at step | s until there again | end |\n|---|---|---|---|---|")
        for number in range(-(-options.kills // KILLS_A_TRAINING)):
            if time.monotonic() - began > 60 * options.minutes:
                break
            chance = random.Random(f"{options.seed}/{number}")
            left = options.kills - number * KILLS_A_TRAINING
            kinds = chance.choices(KINDS, k=min(left, KILLS_A_TRAINING))
            config = config_of(root, f"training {number}")
            kills = list(disturb(config, kinds, chance))
            wrong = differences(config, config_of(root, "undisturbed"))
            failures += bool(wrong)
            verdict = f"differs: {wrong[:3]}" if wrong else "bit-identical"
            for each in kills:
                row = f"{each.kind} | {each.step} | {each.seconds:.1f} | {verdict}"
                print(f"| {number} | {row} |", flush=True)
            seconds += [each.seconds for each in kills]
    print(
        f"\n{len(seconds)} kills in {(time.monotonic() - began) / 60:.1f} minutes, "
        f"{failures} trainings differ; until there again: median {statistics.median(seconds):.1f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
