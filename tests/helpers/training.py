"""Tiny trainings for tests: a small network, and seeded noise as data without any file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lasaft.config import ModelConfig
from lasaft.network.model import LaSAFT
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.windows.loader import Batch, ValidationTrack
from pipeline.data.windows.shares import rows_of_process
from pipeline.training.loop.journal import CLOCK_KINDS, read_history
from pipeline.training.loop.loss_network import loss_of
from pipeline.training.loop.outlet import Outlet, Write
from pipeline.training.loop.randomness import derive_seed, seed_weights
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.records import TrainResult
from pipeline.training.loop.state_file import load_state
from pipeline.training.loop.states import newest_state
from pipeline.training.loop.step import Stepper
from pipeline.training.loop.synchronised_layers import synchronise_batchnorm
from pipeline.training.loop.trainer import Trainer

ALONE = Ranks(0, 1, torch.device("cpu"))

TINY_MODEL: dict[str, Any] = {
    "sources": ["vocals", "drums"],
    "n_fft": 256,
    "hop_length": 128,
    "num_frame": 8,
    "n_blocks": 3,
    "internal_channels": 4,
    "n_internal_layers": 1,
    "num_tdfs": 2,
    "dk": 4,
    "embedding_dim": 4,
    "control_n_layer": 3,
    "sample_rate": 1000,
}


# Of a validation track: 3.1 s at the tiny model's sample rate, so 3 frames of the metric.
FRAMES = 25


def tiny_config(output_dir: Path, **train: Any) -> RunConfig:
    """Return the configuration of a training that takes a second or two."""
    settings = {"batch_size": 4, "steps_per_epoch": 6, "max_epochs": 2, "seed": 7} | train
    tree = {
        "output_dir": str(output_dir),
        "model": TINY_MODEL,
        "train": settings,
        "tracking": {"log": False},
    }
    return RunConfig.model_validate(tree, strict=False)


def with_model(config: RunConfig, **model: Any) -> RunConfig:
    """Return ``config`` with other options of the network."""
    changed = ModelConfig.model_validate(config.model.model_dump() | model)
    return config.model_copy(update={"model": changed})


def tiny_model(config: RunConfig) -> LaSAFT:
    """Return the network with the first weights of ``config``'s seed."""
    seed_weights(config.train.seed)
    return LaSAFT(config.model)


def build_stepper(config: RunConfig, model: LaSAFT | None = None, ranks: Ranks = ALONE) -> Stepper:
    """Return the steps of a training with the loss spec_mse; its network is new, or ``model``."""
    model = tiny_model(config) if model is None else model
    return Stepper(model, loss_of(config.train, "spec_mse", model), config.train, ranks)


class _Stream:
    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self._batches


@dataclass
class NoiseData:
    """Windows of noise whose sources live in different bands, a function of (epoch, batch).

    Args:
        config: shapes, batch size and steps.
        ranks: this process takes its slice of every global batch.
        tracks: how many validation tracks there are.
        spoil: global step -> value that its mixture is filled with.
        stop_at: raise KeyboardInterrupt before this step.
    """

    config: RunConfig
    ranks: Ranks = ALONE
    tracks: int = 1
    spoil: dict[int, float] | None = None
    stop_at: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        assert self.config.train.steps_per_epoch is not None
        return self.config.train.steps_per_epoch

    @contextmanager
    def batches(self, epoch: int, first: int) -> Iterator[_Stream]:
        yield _Stream(self._windows(epoch, first))

    def _windows(self, epoch: int, first: int) -> Iterator[Batch]:
        for batch in range(first, self.steps_per_epoch):
            step = epoch * self.steps_per_epoch + batch
            if step == self.stop_at:
                raise KeyboardInterrupt
            yield self._slice(self._window(step))

    def _slice(self, whole: Batch) -> Batch:
        train, ranks = self.config.train, self.ranks
        mine = rows_of_process(
            train.batch_size, train.accumulate_grad_batches, ranks.rank, ranks.world
        )
        return Batch(whole.mixture[mine], whole.target[mine], whole.condition[mine])

    def _window(self, step: int) -> Batch:
        size, frames = self.config.train.batch_size, self.config.model.num_frame
        sources = self._sources(derive_seed("window", step), size, frames)
        condition = torch.arange(size) % len(self.config.model.sources)
        mixture = sources.sum(1)
        if self.spoil and step in self.spoil:
            mixture = torch.full_like(mixture, self.spoil[step])
        return Batch(mixture, sources[torch.arange(size), condition], condition)

    def _sources(self, seed: int, size: int, frames: int) -> torch.Tensor:
        model = self.config.model
        bins, count = model.n_fft // 2 + 1, len(model.sources)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(
            size, count, 2 * model.audio_channels, frames, bins, generator=generator
        )
        for source in range(count):
            keep = torch.zeros(bins)
            keep[source * bins // count : (source + 1) * bins // count] = 1
            noise[:, source] *= keep
        return noise

    def describe(self, epoch: int, batch: int, windows: Sequence[int]) -> str:
        return f"windows {list(windows)} of batch {batch} in epoch {epoch}"

    def validation_tracks(self) -> Iterator[tuple[int, ValidationTrack]]:
        for place in range(self.ranks.rank, self.tracks, self.ranks.world):
            sources = self._sources(derive_seed("track", place), 1, FRAMES)[0]
            samples = (FRAMES - 1) * self.config.model.hop_length
            yield place, ValidationTrack(f"track {place}", samples, sources.sum(0), list(sources))


def run_tiny(
    config: RunConfig,
    *,
    ranks: Ranks = ALONE,
    spoil: dict[int, float] | None = None,
    stop_at: int | None = None,
    tracks: int = 1,
    outlet: Outlet | None = None,
) -> TrainResult:
    """Train on noise in this process; a KeyboardInterrupt at ``stop_at`` gets through."""
    model = tiny_model(config)
    if config.train.sync_batchnorm:
        synchronise_batchnorm(model)
    data = NoiseData(config, ranks, tracks, spoil, stop_at)
    folder = RunFolder.of(config)
    return Trainer(config, model, data, folder, ranks, provenance={}, outlet=outlet).run()


class Heard(Outlet):
    """An outlet that keeps what is reported, after each step."""

    every_seconds = 0.0

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self.reports: list[dict[str, Any]] = []

    def tell(self, values: dict[str, Any]) -> None:
        self.reports.append(values)

    def save(self, values: dict[str, Any], write: Write | None) -> None:
        self.tell(values)
        super().save(values, write)


def training_tensors(config: RunConfig) -> dict[str, torch.Tensor]:
    """Return every tensor of the saved state: weights, statistics, the optimiser's moments."""
    file = newest_state(RunFolder.of(config))
    assert file is not None
    state = load_state(file)
    assert state is not None
    return state.tensors


def training_history(config: RunConfig) -> list[dict[str, Any]]:
    """Return the journal without what the clock decides."""
    records = read_history(RunFolder.of(config).metrics)
    kept = [record for record in records if record["kind"] not in CLOCK_KINDS]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in kept]


def differences(first: RunConfig, second: RunConfig) -> list[str]:
    """Return the names of the tensors of two trainings that are not equal to the last bit.

    Weights, statistics and the optimiser's moments are compared; "history" stands for the journal.
    """
    ours, theirs = training_tensors(first), training_tensors(second)
    same = {name for name in ours.keys() & theirs.keys() if torch.equal(ours[name], theirs[name])}
    wrong = sorted((ours.keys() | theirs.keys()) - same)
    return wrong + (["history"] if training_history(first) != training_history(second) else [])


def assert_same_training(first: RunConfig, second: RunConfig) -> None:
    """Two trainings are equal to the last bit: weights, optimiser and history."""
    assert differences(first, second) == []
