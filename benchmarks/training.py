"""What training through Ray costs and gains: steps a second, and the time to the first step.

    python -m benchmarks.training [--rounds 2] [--steps 30]

Four ways take the same steps of the network at a quarter of its size: the bare loop over batches
in memory, our loop in this process, our loop through Ray with one worker, and with two. They take
turns, so that what else the machine does falls on all of them; the best round of each counts.
The first ten steps warm up and are not timed. A second table says for how long a save stops a
training of the whole network, a third one for which share of its time training waits for a
validation set ten times that of the preset demo, validated inline and beside. Run it on an idle
machine with two cores or more.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.measure import Figures, Table, best_of, in_own_process, timed
from jobs.cli import parse
from lasaft.config import VARIANTS
from pipeline.cluster.connection import connected
from pipeline.config import RunConfig, from_json, to_json
from pipeline.config.folders import RunFolder
from pipeline.data.shards.manifest import read_manifest
from pipeline.data.windows.loader import Batch
from pipeline.data.windows.remote import open_shards
from pipeline.training.loop.first_weights import new_model
from pipeline.training.loop.identity import claim
from pipeline.training.loop.journal import read_history
from pipeline.training.loop.loss_network import loss_of
from pipeline.training.loop.optimiser import build_optimizer
from pipeline.training.loop.process_data import ShardData
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.reporter import STEPS_PER_RECORD
from pipeline.training.loop.worker import run_session
from pipeline.training.train import fit
from tests.helpers.small_training import make_data
from tests.helpers.training import Heard

CPU = torch.device("cpu")
WAYS = ("bare loop", "in process", "Ray, 1 worker", "Ray, 2 workers")
SAVING = "saves"
VALIDATING = ("inline", "beside")


def config_of(root: Path, way: str, steps: int) -> RunConfig:
    """Return a training of one epoch of the README's network with a quarter of its channels.

    Where it is to show what a save costs: of the whole network, short epochs, a save after each.
    """
    model = {"internal_channels": 6, "num_tdfs": 6, "dk": 8, "num_frame": 32}
    world = 2 if way.endswith("workers") else 1
    size = {"batch_size": 8, "steps_per_epoch": steps, "max_epochs": 1, "world_size": world}
    if way == SAVING:
        model = {"num_frame": 16}
        size |= {"batch_size": 2, "steps_per_epoch": 2, "max_epochs": 9}
    tree = {
        "output_dir": root / way,
        "model": {**VARIANTS["CUNET_TFC_GPoCM_LaSAFT"], **model},
        "data": {"shards_dir": root / "shards"},
        "train": size | {"resources_per_worker": "CPU=1", "sample_every_epochs": 0},
        "tracking": {"log": False},
        "cluster": {"num_cpus": 2},
    }
    return RunConfig.model_validate(tree)


def bare(config: RunConfig) -> float:
    """Take the steps with nothing around them: forward, backward, Adam; return s a step."""
    model = new_model(config, CPU).train()
    loss = loss_of(config.train, config.train.train_loss, model)
    optimizer = build_optimizer(model, config.train)
    with (
        open_shards(config) as shards,
        ShardData(shards, config, Ranks(0, 1, CPU)).batches(0, 0) as loader,
    ):
        batches = [Batch(b.mixture.clone(), b.target.clone(), b.condition.clone()) for b in loader]

    def steps(chosen: slice) -> None:
        for batch in batches[chosen]:
            optimizer.zero_grad(set_to_none=True)
            estimate = model.estimate(batch.mixture, batch.condition)
            loss(estimate, batch.target, batch.mixture).backward()
            optimizer.step()

    steps(slice(STEPS_PER_RECORD))
    seconds = timed(lambda: steps(slice(STEPS_PER_RECORD, None)))["wall"]
    return seconds / (len(batches) - STEPS_PER_RECORD)


def through_ray(
    config: RunConfig, heard: Callable[[dict[str, Any]], None] = lambda values: None
) -> list[dict[str, Any]]:
    """Train through Ray; return the records of the journal."""
    folder = RunFolder.of(config)
    with connected(config.cluster):
        claim(folder, config, read_manifest(folder.shards).hash)
        fit(config, folder, heard)
    return read_history(folder.metrics)


def ours(config: RunConfig) -> Figures:
    """Train in this process or through Ray; return s a step, and s from the start to one done."""
    folder, born = RunFolder.of(config), psutil.Process().create_time()
    told: list[float] = []
    if folder.root.name == "in process":
        heard = Heard(folder)
        heard.tell = lambda values: told.append(time.time())
        run_session(config, CPU, outlet=heard)
    else:
        through_ray(config, lambda values: told.append(time.time()))
    records = read_history(folder.metrics)
    first, *_, last = [record for record in records if record["kind"] == "step"]
    step = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return {"step": step, "first": told[0] - born}


def saving(config: RunConfig) -> Figures:
    """Train through Ray; return for how many ms a save stops the training, and the state's MB."""
    folder, records = RunFolder.of(config), through_ray(config)
    spent = [one["values"]["speed/save_seconds"] for one in records if one["kind"] == "speed"]
    size = max(file.stat().st_size for file in folder.root.rglob(folder.state.name))
    return {"stop": (spent[-1] - spent[0]) / (len(spent) - 1) * 1e3, "size": size / 1e6}


def validating(config: RunConfig) -> Figures:
    """Train through Ray; return the share of the time that waits for validation, and s an epoch."""
    records = through_ray(config)
    waits = [one["values"]["speed/validation_seconds"] for one in records if one["kind"] == "speed"]
    first, *_, last = [one["seconds"] for one in records if one["kind"] == "epoch"]
    # What follows the last epoch has nothing beside it.
    inner = waits[1 : config.train.max_epochs - 1]
    epoch = (last - first) / (config.train.max_epochs - 1)
    return {"wait": sum(inner) / len(inner) / epoch, "epoch": epoch}


def compare_validations() -> None:
    """Print what a validation set ten times that of the preset demo costs, in both ways."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--preset", "demo", "--output_dir", folder, "--num_cpus", "2"]
        demo = parse([*words, "--resources_per_worker", "CPU=1"], "run").config
        songs, found = demo.data, dict[str, Figures]()
        sizes = {"train": songs.synthetic_train, "valid": 10 * songs.synthetic_valid}
        make_data(Path(folder), demo, seconds=songs.synthetic_seconds, **sizes)
        for way in VALIDATING:
            train = demo.train.model_copy(update={"validation": way, "max_epochs": 6})
            data = songs.model_copy(update={"shards_dir": Path(folder) / "shards"})
            place = {"output_dir": Path(folder) / way, "train": train, "data": data}
            file = Path(folder) / f"{way}.json"
            file.write_text(to_json(demo.model_copy(update=place)))
            found[way] = in_own_process("benchmarks.training", "--measure", str(file))
    rows = Table("validation", "of an epoch waited for", "s an epoch", "of inline's")
    for way, figures in found.items():
        share = figures["epoch"] / found["inline"]["epoch"]
        rows.row(way, f"{figures['wait']:.1%}", f"{figures['epoch']:.1f}", f"{share:.2f}")


def measure(way: str, steps: int) -> Figures:
    """Run one way in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(Path(folder), way, steps)
        make_data(Path(folder), config, seconds=6.0)
        file = Path(folder) / "config.json"
        file.write_text(to_json(config))
        return in_own_process("benchmarks.training", "--measure", str(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30, help="a multiple of 10, at least 20")
    parser.add_argument("--only_validation", action="store_true", help="the third table alone")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2 * STEPS_PER_RECORD or options.steps % STEPS_PER_RECORD:
        parser.error(f"steps: got {options.steps}, allowed: a multiple of 10, at least 20")
    if options.measure:
        config = from_json(options.measure.read_bytes())
        way = RunFolder.of(config).root.name
        kinds = {WAYS[0]: lambda config: {"step": bare(config)}, SAVING: saving}
        kinds |= dict.fromkeys(VALIDATING, validating)
        print(json.dumps(kinds.get(way, ours)(config)))
        return
    if options.only_validation:
        compare_validations()
        return
    best = best_of(options.rounds, {way: partial(measure, way, options.steps) for way in WAYS})
    bare_loop, _, one, _ = (found["step"] for found in best.values())
    rows = Table("way", "steps/s", "of the bare loop", "of one worker", "s to the first step")
    for way, found in best.items():
        step, first = found["step"], found.get("first", math.inf)
        shares = f"{bare_loop / step:.1%}", f"{one / step:.2f}"
        rows.row(way, f"{1 / step:.2f}", *shares, f"{first:.1f}" if first < math.inf else "")
    print()
    found = measure(SAVING, 0)
    rows = Table("state", "a save stops the training for")
    rows.row(f"{found['size']:.0f} MB", f"{found['stop']:.0f} ms")
    print()
    compare_validations()


if __name__ == "__main__":
    main()
