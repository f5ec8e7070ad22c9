"""What training through Ray costs and gains: steps a second, and the time to the first step.

    python -m benchmarks.training [--rounds 2] [--steps 30]

Four ways take the same steps of the network at a quarter of its size: the bare loop over batches
in memory, our loop in this process, our loop through Ray with one worker, and with two. They take
turns, so that what else the machine does falls on all of them; the best round of each counts.
The first ten steps warm up and are not timed. Run it on an idle machine with two cores or more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.loader import make_shards
from lasaft.config import VARIANTS, ModelConfig
from pipeline.cluster.connection import connected
from pipeline.config import (
    ClusterConfig,
    DataConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    from_json,
    to_json,
)
from pipeline.config.folders import RunFolder
from pipeline.data.windows.loader import Batch
from pipeline.data.windows.remote import open_shards
from pipeline.training.loop.first_weights import new_model
from pipeline.training.loop.journal import read_history
from pipeline.training.loop.loss_network import loss_of
from pipeline.training.loop.optimiser import build_optimizer
from pipeline.training.loop.process_data import ShardData
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.reporter import STEPS_PER_RECORD
from pipeline.training.loop.worker import run_session
from pipeline.training.train import train
from tests.helpers.songs import make_musdb

CPU = torch.device("cpu")
WAYS = ("bare loop", "in process", "Ray, 1 worker", "Ray, 2 workers")


def config_of(root: Path, name: str, steps: int, world: int) -> RunConfig:
    """Return a training of one epoch of the README's network with a quarter of its channels."""
    model = {"internal_channels": 6, "num_tdfs": 6, "dk": 8, "num_frame": 32}
    return RunConfig(
        output_dir=root / name,
        model=ModelConfig.model_validate({**VARIANTS["CUNET_TFC_GPoCM_LaSAFT"], **model}),
        data=DataConfig(shards_dir=root / "shards"),
        train=TrainConfig(
            batch_size=8, steps_per_epoch=steps, max_epochs=1, world_size=world,
            resources_per_worker="CPU=1", sample_every_epochs=0,
        ),
        tracking=TrackingConfig(log=False),
        cluster=ClusterConfig(num_cpus=2),
    )  # fmt: skip


def prepare(root: Path) -> None:
    make_musdb(root / "songs", train=2, valid=1, test=0, seconds=6.0, seed=0)
    config = config_of(root, "any", 1, 1)
    data = DataConfig(musdb_root=root / "songs")
    make_shards(config.model_copy(update={"data": data}), root / "shards")


def bare(config: RunConfig) -> dict[str, float]:
    """Take the steps with nothing around them: forward, backward, Adam."""
    model = new_model(config, CPU).train()
    loss = loss_of(config.train, config.train.train_loss, model)
    optimizer = build_optimizer(config.train.optimizer, model.parameters(), config.train.lr)
    with open_shards(config) as shards:
        data = ShardData(shards, config, Ranks(0, 1, CPU))
        with data.batches(0, 0) as loader:
            batches = [
                Batch(batch.mixture.clone(), batch.target.clone(), batch.condition.clone())
                for batch in loader
            ]

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        estimate = model.estimate(batch.mixture, batch.condition)
        loss(estimate, batch.target, batch.mixture).backward()
        optimizer.step()

    for batch in batches[:STEPS_PER_RECORD]:
        step(batch)
    start = time.monotonic()
    for batch in batches[STEPS_PER_RECORD:]:
        step(batch)
    return {"steps": (len(batches) - STEPS_PER_RECORD) / (time.monotonic() - start)}


def ours(config: RunConfig) -> dict[str, float]:
    """Train in this process or through Ray, and read the speed from the journal's times."""
    if config.output_dir.name == "in process":
        run_session(config, CPU)
    else:
        with connected(config.cluster):
            train(config)
    records = read_history(RunFolder.of(config).metrics)
    first, *_, last = [record for record in records if record["kind"] == "step"]
    return {"steps": (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])}


def measure(root: Path, way: str, steps: int) -> dict[str, float]:
    """Run one way in a process of its own; also time it from its start to its first step."""
    config = config_of(root, way, steps, 2 if way.endswith("workers") else 1)
    file, shown = root / "config.json", RunFolder.of(config).training / "progress.json"
    file.write_text(to_json(config))
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.training", "--measure", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        while process.poll() is None:
            if first is None and shown.exists():
                first = time.monotonic() - began
            time.sleep(0.02)
        assert process.returncode == 0, f"{way} failed"
        assert process.stdout is not None
        found = json.loads(process.stdout.read().splitlines()[-1])
    return found | ({"first": first} if first is not None else {})


def table(rounds: int, steps: int) -> None:
    best: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            for way in WAYS:
                found = measure(Path(folder), way, steps)
                kept = best[way]
                kept["steps"] = max(found["steps"], kept.get("steps", 0.0))
                if "first" in found:
                    kept["first"] = min(found["first"], kept.get("first", float("inf")))
    bare_speed, one = best[WAYS[0]]["steps"], best[WAYS[2]]["steps"]
    print("| way | steps/s | of the bare loop | of one worker | s to the first step |")
    print("|---|---|---|---|---|")
    for way, found in best.items():
        speed = found["steps"]
        first = f"{found['first']:.1f}" if "first" in found else ""
        print(f"| {way} | {speed:.2f} | {speed / bare_speed:.1%} | {speed / one:.2f} | {first} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30, help="a multiple of 10, at least 20")
    parser.add_argument("--measure", help="one configuration file alone, printed as JSON")
    options = parser.parse_args()
    if options.steps < 2 * STEPS_PER_RECORD or options.steps % STEPS_PER_RECORD:
        parser.error(f"steps: got {options.steps}, allowed: a multiple of 10, at least 20")
    if not options.measure:
        table(options.rounds, options.steps)
        return
    config = from_json(Path(options.measure).read_bytes())
    run = bare if config.output_dir.name == WAYS[0] else ours
    print(json.dumps(run(config)))


if __name__ == "__main__":
    main()
