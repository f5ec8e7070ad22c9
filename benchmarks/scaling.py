"""Predicts a run on 1 to 128 GPUs: epochs, caches, scoring, cost, and what saturates first.

    python -m benchmarks.scaling --preset gpocm_lasaft             the table, for AWS g5.4xlarge
    python -m benchmarks.scaling --preset gpocm_lasaft --step_seconds 0.12 --windows 8

The arithmetic and the memory traffic of a step are counted on the network itself, unless its
seconds are given; what the machines do is given by options, whose defaults and sources ``--help``
tells. ``python -m benchmarks.scaling_hosts`` checks the model on hosts of this machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Table
from jobs.cli import parse
from lasaft.network.model import LaSAFT
from lasaft.separation.chunks import frame_grid, wave_grid
from pipeline.config import RunConfig
from pipeline.data.shards.manifest import ShardSettings

GPUS = (1, 2, 4, 8, 16, 32, 64, 128)
# MUSDB18: songs to train on, to validate and to test, 4 minutes on average (musdb's own lists).
TRAIN_SONGS, VALID_SONGS, TEST_SONGS, SONG_SECONDS = 86, 14, 50, 236.0
LONGEST_SONG_SECONDS = 430.0


@dataclass(frozen=True)
class Work:
    """What a run asks for, whatever the machines are."""

    step_seconds: float  # of one process on its own windows, alone
    gradient_bytes: float  # summed over the processes in each step
    windows: int  # of one process in a step
    epoch_windows: int  # of an epoch, for all targets; the more processes, the fewer steps
    valid_seconds: float  # of the average validation song, after each epoch
    data_bytes: float  # all shards of the training songs
    window_bytes: float  # read for one window
    score_seconds: float  # of the average test song: separation and BSS Eval


@dataclass(frozen=True)
class Machines:
    """What the cluster can do; one process on each GPU."""

    gpus_per_node: int  # processes on one host
    network: float  # bytes a second into and out of a host
    latency: float  # seconds of one message between hosts
    storage: float  # bytes a second that the shared storage gives to all hosts together
    disk: float  # bytes a second of a host's own disk, where its copies of the shards lie
    spread: float  # how much the step times of equal processes differ (standard deviation / mean)
    dollars: float  # of a host for an hour


def predict(work: Work, machines: Machines, gpus: int, epochs: int) -> dict[str, float | str]:
    """Return the figures of a run on so many GPUs; times in seconds.

    The parts of a step: its own work, waiting for the slowest of the processes (the expected
    maximum of normal variables), and the ring all-reduce, of which nothing is hidden behind the
    backward pass: an upper bound. Data of a step is read ahead, so it costs only what it takes
    longer than the step.
    """
    nodes = math.ceil(gpus / machines.gpus_per_node)
    slowest = work.step_seconds * machines.spread * math.sqrt(2 * math.log(gpus))
    rounds = 2 * (nodes - 1)
    reduce = rounds * (work.gradient_bytes / nodes / machines.network + machines.latency)
    step = work.step_seconds + slowest + reduce
    on_node = work.window_bytes * work.windows * min(gpus, machines.gpus_per_node)
    reading = max(0.0, on_node / machines.disk - step)
    steps = max(1, work.epoch_windows // (work.windows * gpus))
    # In the end every host has read every shard: draws are even.
    fill = work.data_bytes / min(machines.network, machines.storage / nodes)
    score = _rounds(TEST_SONGS, gpus) * work.score_seconds
    validation = _rounds(VALID_SONGS, gpus) * work.valid_seconds
    epoch = steps * (step + reading) + validation
    total = epochs * epoch + max(0.0, fill - epoch) + score
    shares = {
        "waiting for the slowest": steps * slowest / epoch,
        "all-reduce": steps * reduce / epoch,
        "disk": steps * reading / epoch,
        "validation": validation / epoch,
        "cache fill": max(0.0, fill - epoch) / total,
        "scoring": score / total,
    }
    worst = max(shares, key=lambda name: shares[name])
    return {
        "step": step, "steps": steps, "epoch": epoch, "validation": validation,
        "fill": fill, "score": score, "total": total,
        "efficiency": work.step_seconds / (step + reading),
        "dollars": nodes * machines.dollars * total / 3600,
        "limit": f"{worst} ({shares[worst]:.0%})" if shares[worst] > 0.01 else "-",
    }  # fmt: skip


def _rounds(songs: int, gpus: int) -> float:
    """How many average songs long it takes until all are done; one song is never divided."""
    return max(math.ceil(songs / gpus), LONGEST_SONG_SECONDS / SONG_SECONDS)


class _Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            for leaf in tree_leaves((args, kwargs, result)):
                if isinstance(leaf, torch.Tensor):
                    self.bytes += leaf.numel() * leaf.element_size()
        return result


def counted_step(config: RunConfig, windows: int) -> tuple[float, float]:
    """Count (floating-point operations, bytes) of forward and backward; nothing is computed."""
    model = config.model
    with torch.device("meta"):
        network = LaSAFT(model).train()
        shape = (windows, model.spec_channels, model.num_frame, model.bins)
        mixture, condition = torch.empty(shape), torch.zeros(windows, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, _Traffic() as traffic:
        network.estimate(mixture, condition).square().mean().backward()
    width = 1.0 if config.train.precision == "32" else 0.5
    return float(counter.get_total_flops()), traffic.bytes * width


def work_of(
    config: RunConfig, options: argparse.Namespace, frames: Sequence[int] | None = None
) -> Work:
    """Return what a run of this configuration asks for.

    Args:
        frames: of each training song; by default those of MUSDB18.
    """
    model, train, windows = config.model, config.train, options.windows
    with torch.device("meta"):
        parameters = sum(each.numel() for each in LaSAFT(model).parameters())
    operations, traffic = counted_step(config, windows)
    bound = max(operations / (1e12 * options.tflops), traffic / (1e9 * options.memory_gbs))
    seconds = options.step_seconds or bound / options.reached
    settings = ShardSettings.of(config)
    song = int(SONG_SECONDS * model.sample_rate)
    frames = frames or [settings.frames(song)] * TRAIN_SONGS
    targets = len(train.target_names or model.sources)
    a_pass = targets * sum(count // model.num_frame for count in frames)
    if train.steps_per_epoch is not None:
        a_pass = train.steps_per_epoch * train.batch_size
    # Forward alone is a third of a step; in float32, which moves twice the bytes of 16 bits.
    forward = seconds / windows / 3 * (1 if train.precision == "32" else 2)
    valid = forward * targets * validation_windows(config, settings.frames(song))
    chunks = len(wave_grid(model, config.evaluate.overlap_ratio).starts(song))
    columns = len(settings.columns)
    return Work(
        step_seconds=seconds,
        gradient_bytes=4.0 * parameters,
        windows=windows,
        epoch_windows=a_pass,
        valid_seconds=valid + targets * options.sdr_seconds,
        data_bytes=float(sum(frames) * settings.row_bytes * columns),
        # With remix each source has a place of its own; the mixture is their sum.
        window_bytes=float(model.num_frame * settings.row_bytes * (columns - 1)),
        score_seconds=forward * len(model.sources) * chunks + options.bss_seconds,
    )


def validation_windows(config: RunConfig, frames: int) -> int:
    """Return the windows in which validation separates a song of so many frames."""
    return len(frame_grid(config.model).starts(frames))


def show(work: Work, machines: Machines, epochs: int) -> None:
    """Print the table."""
    times = ("validation", "cache fill", "scoring", "whole run")
    columns = ("GPUs", "step s", "epoch", "efficiency", *times, "cost $", "saturates first")
    rows = Table(*columns)
    for gpus in GPUS:
        found = predict(work, machines, gpus, epochs)
        names = ("epoch", "validation", "fill", "score", "total")
        epoch, *times = (_clock(float(found[name])) for name in names)
        shares = f"{found['step']:.3f}", epoch, f"{found['efficiency']:.0%}"
        rows.row(gpus, *shares, *times, f"{found['dollars']:.0f}", found["limit"])


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", default="gpocm_lasaft", help="the run's settings")
    add("--windows", type=int, default=8, help="windows of one GPU in a step (default: 8)")
    add("--epochs", type=int, default=100, help="epochs of the run (default: 100)")
    add("--step_seconds", type=float, help="measured; left out, counted and divided by the GPU's")
    add("--tflops", type=float, default=31.2, help="10^12 operations/s (NVIDIA's data sheet, A10G)")
    add("--memory_gbs", type=float, default=600.0, help="GPU memory, GB/s (the same data sheet)")
    add("--reached", type=float, default=0.5, help="share of either that is reached (assumed)")
    add("--bss_seconds", type=float, default=30.0, help="BSS Eval of a song, one core (assumed)")
    add("--sdr_seconds", type=float, default=0.15, help="frame SDR of a source of a song, one core")
    add("--gpus_per_node", type=int, default=1, help="of a host (g5.4xlarge: 1)")
    add("--network_gbits", type=float, default=10.0, help="of a host (g5.4xlarge: 10 sustained)")
    add("--latency_us", type=float, default=50.0, help="of a message between hosts (assumed)")
    add("--storage_gbs", type=float, default=1.0, help="shared storage, GB/s in all (assumed)")
    add("--disk_gbs", type=float, default=0.5, help="a host's disk, GB/s (gp3 of cluster.yaml)")
    add("--spread", type=float, default=0.03, help="of step times, relative (assumed)")
    add("--dollars", type=float, default=0.65, help="of a host for an hour (spot, assumed)")
    options = parser.parse_args()
    # Only its settings count; no song is looked for.
    config = parse(["--preset", options.preset, "--musdb_root", "."], "run").config
    work = work_of(config, options)
    machines = Machines(
        gpus_per_node=options.gpus_per_node,
        network=1e9 * options.network_gbits / 8,
        latency=1e-6 * options.latency_us,
        storage=1e9 * options.storage_gbs,
        disk=1e9 * options.disk_gbs,
        spread=options.spread,
        dollars=options.dollars,
    )
    print(
        f"A step of {work.windows} windows: {work.step_seconds:.3f} s on one GPU, "
        f"{work.gradient_bytes / 1e6:.0f} MB of gradients; shards of "
        f"{work.data_bytes / 1e9:.0f} GB; {work.epoch_windows} windows an epoch; "
        f"{work.valid_seconds:.0f} s to validate a song, {work.score_seconds:.0f} s to score one; "
        f"{options.epochs} epochs."
    )
    show(work, machines, options.epochs)


if __name__ == "__main__":
    main()
