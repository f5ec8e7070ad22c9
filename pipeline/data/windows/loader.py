"""Batches for training and whole tracks for validation, read from shards by threads."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from lasaft.errors import ConfigError
from pipeline.data.shards.manifest import ShardEntry, TrackEntry
from pipeline.data.songs.layouts import MIXTURE
from pipeline.data.windows.draw_plan import DrawPlan
from pipeline.data.windows.reader import ShardSet
from pipeline.data.windows.shares import require_shares, rows_of_process


@dataclass
class Batch:
    """Windows of one step of one process, complex as channels.

    Attributes:
        mixture: float32 [batch, 2 * audio channel, frame, bin], the sum of the sources drawn.
        target: the same shape, the source named by ``condition``, or the sum of those.
        condition: int64 [batch], or float32 [batch, source], 1 for each source of a set.
    """

    mixture: Tensor
    target: Tensor
    condition: Tensor


class BatchLoader:
    """Iterate over the batches of an epoch; use as a context manager, once.

    Reader threads fill a ring of buffers that are used again: **a batch is valid until the next
    one is asked for**. Which thread reads a batch does not change a bit of it.

    Args:
        shards: the open shard folder that the plan was drawn for.
        plan: the epoch's draw plan.
        rank: this process, from 0.
        world_size: how many processes share each batch.
        start_step: the first step to yield, to go on in mid epoch.
        pin_memory: page-locked buffers; copies to the GPU may then be asynchronous.

    Raises:
        ConfigError: more processes than windows, or there is no GPU to pin for.
        DataError: while iterating, a shard is damaged.
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: DrawPlan,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        threads: int = 1,
        pin_memory: bool = False,
    ) -> None:
        require_shares(plan.batch_size, plan.micro_batches, world_size)
        if pin_memory and not torch.cuda.is_available():
            raise ConfigError("pin_memory: got True; this process sees no GPU to pin memory for")
        self._mixer = _Mixer(shards, plan, rank, world_size)
        self._steps = range(start_step, plan.steps)
        self._pin = pin_memory
        rows = rows_of_process(plan.batch_size, plan.micro_batches, rank, world_size)
        self._shape = (len(rows), *_window_shape(shards, plan.num_frame))
        self._lanes = [_Lane(self._steps[index::threads]) for index in range(threads)]
        self._stop = threading.Event()
        self._started = False
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        assert not self._started, "a loader is for one pass"
        self._start()
        try:
            for place in range(len(self._steps)):
                lane = self._lanes[place % len(self._lanes)]
                asked = time.perf_counter()
                batch = lane.ready.get()
                self.wait_seconds += time.perf_counter() - asked
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
                lane.free.put((batch, self._fence()))
        finally:
            self.close()

    def _start(self) -> None:
        self._started = True
        self._mixer.fill_from(self._steps)
        buffers = 3 if len(self._lanes) == 1 else 2  # one in use, one ready, one being filled
        for lane in self._lanes:
            for _ in range(min(buffers, len(lane.steps))):
                mixture, target = (torch.empty(self._shape, pin_memory=self._pin) for _ in range(2))
                condition = torch.from_numpy(self._mixer.wanted[: self._shape[0]]).clone()
                condition = condition.pin_memory() if self._pin else condition
                lane.free.put((Batch(mixture, target, condition), None))
            lane.thread = threading.Thread(
                target=self._read, args=(lane,), name="shard-reader", daemon=True
            )
            lane.thread.start()

    def _fence(self) -> torch.cuda.Event | None:
        """Mark the work that may still read a pinned batch: copies to the GPU are asynchronous."""
        if not self._pin:
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _read(self, lane: _Lane) -> None:
        try:
            for step in lane.steps[:1]:
                self._mixer.prefetch(step)
            for step, later in zip(lane.steps, [*lane.steps[1:], None], strict=True):
                item = lane.free.get()
                if item is None:
                    return
                batch, fence = item
                if fence is not None:
                    fence.synchronize()
                if later is not None:
                    self._mixer.prefetch(later)
                if not self._mixer.fill(step, batch, self._stop):
                    return
                lane.ready.put(batch)
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that iterates
            lane.ready.put(error)

    def close(self) -> None:
        """End the reader threads; safe to call again."""
        self._stop.set()
        for lane in self._lanes:
            lane.free.put(None)
        for lane in self._lanes:
            if lane.thread is not None:
                lane.thread.join()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Lane:
    """One reader thread: every n-th step, in order, with buffers of its own."""

    def __init__(self, steps: range) -> None:
        self.steps = steps
        self.free: queue.SimpleQueue[tuple[Batch, torch.cuda.Event | None] | None] = (
            queue.SimpleQueue()
        )
        self.ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None


class _Mixer:
    """Turns the rows of a draw plan into mixtures and targets."""

    def __init__(self, shards: ShardSet, plan: DrawPlan, rank: int, world_size: int) -> None:
        self._shards, self._plan = shards, plan
        self._rank, self._world_size = rank, world_size
        self._sources = shards.manifest.settings.sources
        self._stereo = shards.manifest.settings.channels == 2
        self._local = threading.local()
        self.wanted = plan.wanted

    def prefetch(self, step: int) -> None:
        """Start reading the windows of ``step`` from the disk or the store."""
        plan = self._plan
        for sample in plan.samples(step, self._rank, self._world_size):
            for place, source in enumerate(self._sources):
                for number, start in plan.windows(sample, place):
                    self._shards.prefetch(plan.tracks[number], source, start, plan.num_frame)

    def fill_from(self, steps: range) -> None:
        """Let shards from far away be fetched in the order in which ``steps`` need them."""
        self._shards.fill(self._in_order(steps))

    def _in_order(self, steps: range) -> Iterator[ShardEntry]:
        """Yield the shards that training reads: first what this process needs, then the others."""
        plan, manifest = self._plan, self._shards.manifest
        seen: set[str] = set()
        wanted = {shard.path for track in plan.tracks for shard in track.shards}
        for step in steps:
            for sample in plan.samples(step, self._rank, self._world_size):
                for number, start in plan.windows(sample):
                    for entry in self._shards.shards_of(plan.tracks[number], start, plan.num_frame):
                        if entry.path not in seen:
                            seen.add(entry.path)
                            yield entry
            if seen >= wanted:
                break
        others = [*manifest.split("valid"), *plan.tracks]
        yield from (e for track in others for e in track.shards if e.path not in seen)

    def fill(self, step: int, batch: Batch, stop: threading.Event) -> bool:
        """Fill ``batch`` with the windows of ``step``; return False if stopped before the end."""
        for row, sample in enumerate(self._plan.samples(step, self._rank, self._world_size)):
            if stop.is_set():
                return False
            batch.condition[row] = torch.as_tensor(self.wanted[sample])
            self._mix(sample, batch.mixture[row], batch.target[row])
        return True

    def _mix(self, sample: int, mixture: Tensor, target: Tensor) -> None:
        # Rows are changed to float32 and added in the shards' own order of axes, in reused memory,
        # and change it once at the end: that takes three quarters of the time.
        plan, (total, rows, second) = self._plan, self._scratch(mixture)
        first, *others = plan.target(sample)
        for place, source in enumerate(self._sources):
            out = rows if place else total
            track, start = plan.track[sample, place], plan.start[sample, place]
            swap = self._stereo and bool(plan.swap[sample, place])
            self._shards.read_rows(plan.tracks[track], source, int(start), out, swap=swap)
            share = float(plan.share[sample, place])
            if share:
                track, start = plan.second_track[sample, place], plan.second_start[sample, place]
                self._shards.read_rows(plan.tracks[track], source, int(start), second, swap=swap)
                out.mul_(1 - share).add_(second, alpha=share)
            gain = float(plan.gain[sample, place])
            if gain != 1:
                out.mul_(gain)
            if place == first:
                target.transpose(0, 1).copy_(out)
            elif place in others:
                target.transpose(0, 1).add_(out)
            # Sources are added in their order, in float32: 76 dB, where float16 gives 71 dB.
            if place:
                total.add_(rows)
        mixture.transpose(0, 1).copy_(total)

    def _scratch(self, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return three buffers of this thread, float32 [frame, 2 * audio channel, bin]."""
        if not hasattr(self._local, "scratch"):
            rows = window.transpose(0, 1)
            first, second, third = (torch.empty(rows.shape) for _ in range(3))
            self._local.scratch = first, second, third
        return self._local.scratch


def _window_shape(shards: ShardSet, frames: int) -> tuple[int, int, int]:
    rows, bins = shards.manifest.settings.row_shape
    return rows, frames, bins


class SourceSpectrograms(Sequence[Tensor]):
    """The sources of a track, each read when it is asked for: [2 * audio channel, frame, bin]."""

    def __init__(self, shards: ShardSet, track: TrackEntry) -> None:
        self._shards, self._track = shards, track

    def __len__(self) -> int:
        return len(self._shards.manifest.settings.sources)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        names = self._shards.manifest.settings.sources[index]
        if isinstance(names, str):
            return read_spectrogram(self._shards, self._track, names)
        return [read_spectrogram(self._shards, self._track, name) for name in names]


@dataclass
class ValidationTrack:
    """One whole song.

    Attributes:
        name: the track's name.
        samples: length of its audio.
        mixture: float32 [2 * audio channel, frame, bin].
        sources: one such tensor a source, read when indexed: a song's five would fill a gigabyte.
    """

    name: str
    samples: int
    mixture: Tensor
    sources: Sequence[Tensor]


def read_spectrogram(shards: ShardSet, track: TrackEntry, column: str) -> Tensor:
    """Return a whole column of a track, float32 [2 * audio channel, frame, bin]."""
    out = torch.empty(_window_shape(shards, track.frames))
    shards.read_window(track, column, 0, out)
    return out


def validation_tracks(
    shards: ShardSet,
    split: str = "valid",
    *,
    rank: int = 0,
    world_size: int = 1,
    as_sum: bool = False,
) -> Iterator[tuple[int, ValidationTrack]]:
    """Yield this process's share of a split in the manifest's order: (place in it, track).

    Args:
        rank: this process, from 0.
        world_size: how many processes share the tracks.
        as_sum: the mixture is the sum of the sources, not the stored one.

    Raises:
        DataError: a shard is damaged.
    """
    for place, track in list(enumerate(shards.manifest.split(split)))[rank::world_size]:
        sources = SourceSpectrograms(shards, track)
        if as_sum:
            mixture = sources[0]
            for number in range(1, len(sources)):
                mixture += sources[number]
        else:
            mixture = read_spectrogram(shards, track, MIXTURE)
        yield place, ValidationTrack(track.name, track.samples, mixture, sources)
