"""What one process trains and validates on: batches, whole tracks, and their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from pipeline.config import RunConfig
from pipeline.data.shards.manifest import ShardSettings
from pipeline.data.windows.draw_plan import DrawPlan, draw_plan, steps_per_epoch
from pipeline.data.windows.loader import Batch, BatchLoader, ValidationTrack, validation_tracks
from pipeline.data.windows.reader import ShardSet
from pipeline.training.loop.ranks import Ranks

# Of the windows of a batch; a message with all of them would fill a screen.
_MOST_DESCRIBED = 4


class Batches(Protocol):
    """The batches of the rest of an epoch; ``wait_seconds`` counts the time spent waiting."""

    wait_seconds: float

    def __iter__(self) -> Iterator[Batch]: ...


class TrainingData(Protocol):
    """What one process trains and validates on."""

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has."""
        ...

    def batches(self, epoch: int, first: int) -> AbstractContextManager[Batches]:
        """Return the batches of ``epoch`` (from 0), from number ``first`` on."""
        ...

    def describe(self, epoch: int, batch: int, windows: Sequence[int]) -> str:
        """Return where these windows of a global batch come from: tracks and frames."""
        ...

    def validation_tracks(self) -> Iterator[tuple[int, ValidationTrack]]:
        """Yield this process's share of the tracks, each with its place among all of them."""
        ...


class ShardData:
    """The windows and tracks of one process, from a shard folder.

    Args:
        config: what is drawn, and how it is read.
    """

    def __init__(self, shards: ShardSet, config: RunConfig, ranks: Ranks) -> None:
        self._shards, self._config, self._ranks = shards, config, ranks
        self.steps_per_epoch = steps_per_epoch(shards.manifest, config)

    @contextmanager
    def batches(self, epoch: int, first: int) -> Iterator[BatchLoader]:
        """Yield the batches of ``epoch`` from number ``first`` on."""
        train, ranks = self._config.train, self._ranks
        with BatchLoader(
            self._shards,
            self._plan(epoch),
            rank=ranks.rank,
            world_size=ranks.world,
            start_step=first,
            threads=train.num_workers,
            pin_memory=train.pin_memory and ranks.device.type == "cuda",
        ) as loader:
            yield loader

    def describe(self, epoch: int, batch: int, windows: Sequence[int]) -> str:
        """Return where these windows of a global batch come from: tracks and frames."""
        plan, settings = self._plan(epoch), self._shards.manifest.settings
        first = batch * plan.batch_size
        texts = [_window(plan, first + number, settings) for number in windows[:_MOST_DESCRIBED]]
        more = len(windows) - len(texts)
        return "; ".join(texts) + (f"; and {more} more" if more else "")

    def _plan(self, epoch: int) -> DrawPlan:
        return draw_plan(self._shards.manifest, self._config, epoch)

    def validation_tracks(self) -> Iterator[tuple[int, ValidationTrack]]:
        """Yield this process's share of the validation tracks."""
        return validation_tracks(
            self._shards,
            rank=self._ranks.rank,
            world_size=self._ranks.world,
            as_sum=self._config.data.val_mixture == "sum",
        )


def _window(plan: DrawPlan, sample: int, settings: ShardSettings) -> str:
    parts, sources = [], settings.sources
    for place, source in enumerate(sources):
        track = plan.tracks[plan.track[sample, place]]
        start = int(plan.start[sample, place]) // settings.phases
        parts.append(f"{source} of {track.name!r} frames {start}-{start + plan.num_frame - 1}")
    target = "+".join(sources[place] for place in plan.target(sample))
    return ", ".join(parts) + f" (target {target})"
