"""The draw plan of an epoch: which windows are mixed in which batch, known before any is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lasaft.errors import ConfigError, DataError
from pipeline.config import DataConfig, RunConfig
from pipeline.data.shards.manifest import Manifest, TrackEntry


@dataclass(frozen=True)
class DrawPlan:
    """All windows of one epoch; ``sample`` counts them over all steps and processes.

    Attributes:
        tracks: the training tracks that are drawn from.
        num_frame: frames of a window.
        batch_size: windows a step, over all processes together.
        micro_batches: parts of a step, one after the other.
        track: int32 [sample, source], an index into ``tracks``.
        start: int32 [sample, source], the first frame.
        condition: int64 [sample], the target's place in the manifest's sources.
        gain: float32 [sample, source], a factor; negative where the polarity is flipped.
        swap: bool [sample, source], left and right change places.
        share: float32 [sample, source], how much of a source a second window is; mostly 0. The
            source is (1 - share) * the first window + share * the second, then swapped and scaled.
        second_track: int32 [sample, source], an index into ``tracks``.
        second_start: int32 [sample, source], the second window's first frame.
    """

    tracks: tuple[TrackEntry, ...]
    num_frame: int
    batch_size: int
    micro_batches: int
    track: np.ndarray
    start: np.ndarray
    condition: np.ndarray
    gain: np.ndarray
    swap: np.ndarray
    share: np.ndarray
    second_track: np.ndarray
    second_start: np.ndarray

    @property
    def steps(self) -> int:
        """Steps of the epoch."""
        return len(self.condition) // self.batch_size

    def windows(self, sample: int, place: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield (track, start) of each window that is read for a sample, or a source of it."""
        places = range(self.track.shape[1]) if place is None else (place,)
        for one in places:
            yield int(self.track[sample, one]), int(self.start[sample, one])
            if self.share[sample, one]:
                yield int(self.second_track[sample, one]), int(self.second_start[sample, one])

    def samples(self, step: int, rank: int, world_size: int) -> list[int]:
        """Return the samples of one process in one step; all processes together have the batch."""
        first = step * self.batch_size
        rows = rows_of_process(self.batch_size, self.micro_batches, rank, world_size)
        return [first + row for row in rows]


def rows_of_process(batch_size: int, micro_batches: int, rank: int, world_size: int) -> list[int]:
    """Return the rows of a batch that one process gets, micro-batch after micro-batch.

    All processes together have a micro-batch of the rows that one process alone would have.

    >>> rows_of_process(8, 2, rank=1, world_size=2)
    [2, 3, 6, 7]
    """
    windows = batch_size // micro_batches
    share = share_of_process(windows, rank, world_size)
    return [first + row for first in range(0, batch_size, windows) for row in share]


def share_of_process(windows: int, rank: int, world_size: int) -> range:
    """Return the rows of a micro-batch of so many windows that one process gets.

    Shares differ by one window at most; the first processes have the larger ones.

    >>> [share_of_process(5, rank, world_size=3) for rank in range(3)]
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    least, larger = divmod(windows, world_size)
    first = rank * least + min(rank, larger)
    return range(first, first + least + (rank < larger))


def require_shares(batch_size: int, micro_batches: int, world_size: int) -> None:
    """Raise ConfigError unless each process has a window of each micro-batch."""
    if batch_size // micro_batches < world_size:
        raise ConfigError(
            f"batch_size: got {batch_size}; allowed: at least {micro_batches * world_size}, a "
            f"window for each of the {world_size} processes in each of the {micro_batches} "
            "micro-batches"
        )


def usable_tracks(manifest: Manifest, num_frame: int) -> tuple[TrackEntry, ...]:
    """Return the training tracks that hold a window; shorter ones are never drawn.

    Raises:
        DataError: there is no training track.
        ConfigError: none is long enough.
    """
    tracks = manifest.split("train")
    if not tracks:
        raise DataError("the shards hold no training track; run jobs.preprocess on a train/ folder")
    usable = tuple(track for track in tracks if track.frames >= num_frame)
    if not usable:
        longest = max(track.frames for track in tracks)
        raise ConfigError(
            f"num_frame: got {num_frame}; allowed: at most {longest}, the frames of the longest "
            "training track"
        )
    return usable


def target_conditions(manifest: Manifest, target_names: Sequence[str] | None) -> np.ndarray:
    """Return the condition numbers to train on, int64.

    Raises:
        ConfigError: a target is no source of the shards.
    """
    sources = manifest.settings.sources
    unknown = [name for name in target_names or () if name not in sources]
    if unknown or target_names == ():
        raise ConfigError(
            f"target_names: got {', '.join(unknown) or 'none'}; allowed: {', '.join(sources)}"
        )
    return np.array([sources.index(name) for name in target_names or sources], dtype=np.int64)


def steps_per_epoch(manifest: Manifest, config: RunConfig) -> int:
    """Return the steps of an epoch: as set, or windows that fit in the tracks times targets."""
    if config.train.steps_per_epoch is not None:
        return config.train.steps_per_epoch
    lengths = [track.frames for track in usable_tracks(manifest, config.model.num_frame)]
    target_conditions(manifest, config.train.target_names)
    return max(1, windows_of_pass(lengths, config) // config.train.batch_size)


def windows_of_pass(lengths: Iterable[int], config: RunConfig) -> int:
    """Return the windows that fit in tracks of so many frames, once for each target."""
    targets = config.train.target_names or config.model.sources
    return len(targets) * sum(length // config.model.num_frame for length in lengths)


def draw_plan(manifest: Manifest, config: RunConfig, epoch: int) -> DrawPlan:
    """Draw an epoch: a pure function of (seed, epoch, manifest hash) and the draw settings.

    Each source of a mixture comes from a track and a place of its own (remix; with
    ``remix_probability`` below 1 the other mixtures are as the songs have them: all sources from
    the target's place). ``iid`` draws the track evenly, then the place evenly, as the reference
    does. ``coverage`` walks each source through windows that together touch every frame, in random
    order and from a random phase, and takes the targets equally often. Turning another
    augmentation on leaves the windows as they were.

    Args:
        config: seed, batch_size, accumulate_grad_batches, steps_per_epoch, target_names, num_frame
            and the data settings.
        epoch: from 0.

    Raises:
        ConfigError: an option does not fit the shards.
        DataError: there is no training track.
    """
    frames, train = config.model.num_frame, config.train
    tracks = usable_tracks(manifest, frames)
    targets = target_conditions(manifest, train.target_names)
    shape = (steps_per_epoch(manifest, config) * train.batch_size, len(manifest.settings.sources))
    seeds = np.random.SeedSequence([train.seed, epoch, int(manifest.hash, 16)]).spawn(5)
    windows, conditions, changes, remixes, mixups = (
        np.random.Generator(np.random.PCG64(seed)) for seed in seeds
    )
    lengths = np.array([track.frames for track in tracks])
    if config.data.draw == "iid":
        track = windows.integers(0, len(tracks), shape)
        start = windows.integers(0, lengths[track] - frames + 1)
        condition = conditions.choice(targets, shape[0])
    else:
        walks = [_walk(windows, lengths, frames, shape[0]) for _ in range(shape[1])]
        track, start = np.stack(walks, axis=-1)
        condition = conditions.permutation(np.resize(targets, shape[0]))
    as_in_the_song = remixes.random(shape[0]) >= config.data.remix_probability
    for drawn in (track, start):
        of_target = np.take_along_axis(drawn, condition[:, None], axis=1)
        drawn[as_in_the_song] = of_target[as_in_the_song]
    gain, swap = _changes(changes, config.data, shape)
    second_track = mixups.integers(0, len(tracks), shape)
    second_start = mixups.integers(0, lengths[second_track] - frames + 1)
    return DrawPlan(
        tracks=tracks,
        num_frame=frames,
        batch_size=train.batch_size,
        micro_batches=train.accumulate_grad_batches,
        track=track.astype(np.int32),
        start=start.astype(np.int32),
        condition=condition,
        gain=gain,
        swap=swap,
        share=_shares(mixups, config.data, shape),
        second_track=second_track.astype(np.int32),
        second_start=second_start.astype(np.int32),
    )


def _walk(random: np.random.Generator, lengths: np.ndarray, frames: int, count: int) -> np.ndarray:
    """Return int64 [2, count]: tracks and starts of windows that cover everything, repeatedly.

    Args:
        random: is drawn from.
        lengths: frames of each track, [track].
        frames: of a window.
        count: how many windows.
    """
    passes: list[np.ndarray] = []
    drawn = 0
    while drawn < count:
        windows = np.concatenate(
            [_cover(random, index, length, frames) for index, length in enumerate(lengths)], axis=1
        )
        passes.append(random.permutation(windows, axis=1))
        drawn += windows.shape[1]
    return np.concatenate(passes, axis=1)[:, :count]


def _cover(random: np.random.Generator, index: int, length: int, frames: int) -> np.ndarray:
    """Return int64 [2, window]: track and start of windows that touch every frame of a track."""
    phase = int(random.integers(0, frames))
    starts = np.arange(phase - frames, length, frames).clip(0, length - frames)
    starts = np.unique(starts)
    return np.stack([np.full_like(starts, index), starts])


def _changes(
    random: np.random.Generator, data: DataConfig, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    decibels = random.uniform(-data.gain_db, data.gain_db, shape)
    scaled = random.random(shape) < data.gain_probability
    flipped = random.random(shape) < data.polarity_probability
    swapped = random.random(shape) < data.channel_swap_probability
    gain = np.where(scaled, 10 ** (decibels / 20), 1.0) * np.where(flipped, -1.0, 1.0)
    return gain.astype(np.float32), swapped


def _shares(random: np.random.Generator, data: DataConfig, shape: tuple[int, int]) -> np.ndarray:
    share = random.uniform(0, data.mixup_share, shape)
    mixed = random.random(shape) < data.mixup_probability
    return np.where(mixed, share, 0.0).astype(np.float32)
