"""The draw plan of an epoch: which windows are mixed in which batch, known before any is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lasaft.errors import ConfigError, DataError
from pipeline.config import DataConfig, RunConfig
from pipeline.data.shards.manifest import Manifest, TrackEntry
from pipeline.data.windows.shares import rows_of_process


@dataclass(frozen=True)
class DrawPlan:
    """All windows of one epoch; ``sample`` counts them over all steps and processes.

    Attributes:
        tracks: the training tracks that are drawn from.
        num_frame: frames of a window.
        batch_size: windows a step, over all processes together.
        micro_batches: parts of a step, one after the other.
        track: int32 [sample, source], an index into ``tracks``.
        start: int32 [sample, source], the first frame, counted on all grids of the shards together.
        condition: int64 [sample], the target's place in the manifest's sources.
        members: float32 [sample, source], 1 for each source of the target: that of ``condition``
            and others. None: it is the only one.
        gain: float32 [sample, source], a factor; negative where the polarity is flipped.
        swap: bool [sample, source], left and right change places.
        share: float32 [sample, source], how much of a source a second window is; mostly 0. The
            source is (1 - share) * the first window + share * the second, then swapped and scaled.
        second_track: int32 [sample, source], an index into ``tracks``.
        second_start: int32 [sample, source], the second window's first frame, counted so too.
    """

    tracks: tuple[TrackEntry, ...]
    num_frame: int
    batch_size: int
    micro_batches: int
    track: np.ndarray
    start: np.ndarray
    condition: np.ndarray
    members: np.ndarray | None
    gain: np.ndarray
    swap: np.ndarray
    share: np.ndarray
    second_track: np.ndarray
    second_start: np.ndarray

    @property
    def steps(self) -> int:
        """Steps of the epoch."""
        return len(self.condition) // self.batch_size

    @property
    def wanted(self) -> np.ndarray:
        """What the network is asked for: ``members``, or else ``condition``."""
        return self.condition if self.members is None else self.members

    def target(self, sample: int) -> list[int]:
        """Return the places of the sources whose sum is the target, in their order."""
        chosen = self.members[sample].nonzero()[0] if self.members is not None else None
        return [int(self.condition[sample])] if chosen is None else chosen.tolist()

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
    """Return the steps of an epoch: as set, or those of one pass over the training frames."""
    if config.train.steps_per_epoch is not None:
        return config.train.steps_per_epoch
    target_conditions(manifest, config.train.target_names)
    tracks = usable_tracks(manifest, config.model.num_frame)
    windows, size = int(windows_of_pass(tracks, config).sum()), config.train.batch_size
    return max(1, -(-windows // size) if config.data.draw == "coverage" else windows // size)


def windows_of_pass(tracks: Sequence[TrackEntry], config: RunConfig) -> np.ndarray:
    """Return for each target the windows that fit in the tracks, or cover them, int64 [target].

    Of those in songs without the target only the share ``silent_target_weight`` counts.

    Raises:
        ConfigError: a target is left with none.
    """
    targets, frames = config.train.target_names or config.model.sources, config.model.num_frame
    rest = frames - 1 if config.data.draw == "coverage" else 0
    windows = np.array([(track.frames + rest) // frames for track in tracks])
    weight, lacking = config.data.silent_target_weight, _lacking(tracks, targets) @ windows
    counts = windows.sum() - np.rint((1 - weight) * lacking).astype(np.int64)
    if never := ", ".join(name for name, count in zip(targets, counts, strict=True) if not count):
        raise ConfigError(
            f"silent_target_weight: got {weight}, but no training song that holds a window has "
            f"{never}; allowed: 1.0, or target_names without it"
        )
    return counts


def _lacking(tracks: Sequence[TrackEntry], sources: Sequence[str]) -> np.ndarray:
    """Return bool [source, track]: is the source silent throughout the song?"""
    return np.array([[not track.levels[name].peak for track in tracks] for name in sources])


def draw_plan(manifest: Manifest, config: RunConfig, epoch: int) -> DrawPlan:
    """Draw an epoch: a pure function of (seed, epoch, manifest hash) and the draw settings.

    Each source of a mixture comes from a track and a place of its own (remix; with
    ``remix_probability`` below 1 the other mixtures are as the songs have them: all sources from
    the target's place). ``iid`` draws the track evenly, then the place evenly, as the reference
    does, among the songs that have the target more often with a ``silent_target_weight`` below 1.
    With ``coverage`` every frame of every target is a target in each epoch, once, or twice
    where windows have to overlap; where ``steps_per_epoch`` leaves no room for that, in as many
    epochs as have it. (What fills the last batch comes on top.) What is heard beside a target walks
    through all frames in the same way. (Of songs without the target, the share
    ``silent_target_weight`` of the windows is taken.) Where conditions are sets, others of the
    targets join each one, evenly drawn, up to a size drawn by ``set_sizes``. Turning another
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

    def streams(number: int) -> list[np.random.Generator]:
        seeds = np.random.SeedSequence([train.seed, number, int(manifest.hash, 16)]).spawn(7)
        return [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

    windows, conditions, changes, remixes, mixups, sets, heard = streams(epoch)
    lengths = np.array([track.frames for track in tracks])
    counts = windows_of_pass(tracks, config)
    lacking = _lacking(tracks, manifest.settings.sources)
    number = epoch  # of the pass that the epoch is, or is a part of
    if config.data.draw == "iid":
        track = windows.integers(0, len(tracks), shape)
        start = windows.integers(0, lengths[track] - frames + 1)
        condition = conditions.choice(targets, shape[0])
        if config.data.silent_target_weight < 1:
            odds = np.where(lacking, config.data.silent_target_weight, 1.0)
            for source in targets:
                rows = np.flatnonzero(condition == source)
                chances = odds[source] / odds[source].sum()
                track[rows, source] = heard.choice(len(tracks), len(rows), p=chances)
                places = lengths[track[rows, source]] - frames + 1
                start[rows, source] = heard.integers(0, places)
    else:
        samples = shape[0]
        epochs = -(-int(counts.sum()) // samples)  # that a pass takes
        number, part = divmod(epoch, epochs)
        of_each = dict(zip(targets.tolist(), counts.tolist(), strict=True))
        condition, places = _covering(
            streams(number)[0], lengths, frames, of_each, lacking=lacking, samples=epochs * samples
        )
        mine = slice(part * samples, (part + 1) * samples)
        condition, (track, start) = condition[mine], places[:, mine]
    grids = _Grids(manifest, config, number)
    start = grids.placed(start, track, len(tracks))
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
        members=_sets(sets, condition, targets, config) if config.model.takes_sets else None,
        gain=gain,
        swap=swap,
        share=_shares(mixups, config.data, shape),
        second_track=second_track.astype(np.int32),
        second_start=grids.placed(second_start, second_track).astype(np.int32),
    )


class _Grids:
    """Puts windows on the grids of the shards, each as often: a draw of its own.

    With ``coverage``, the windows of a source in a track are on one grid in a pass, and so touch.

    Args:
        number: of the pass, or of the epoch where there are none.
    """

    def __init__(self, manifest: Manifest, config: RunConfig, number: int) -> None:
        self._phases = manifest.settings.phases
        seed = [config.train.seed, number, int(manifest.hash, 16), self._phases]
        self._random, self._covers = np.random.default_rng(seed), config.data.draw == "coverage"

    def placed(self, frame: np.ndarray, track: np.ndarray, tracks: int = 0) -> np.ndarray:
        """Return the starts of windows [sample, source], counted on all grids.

        Args:
            frame: their first frames on a grid.
            track: an index of their tracks.
            tracks: how many there are, where the windows may have to cover them.
        """
        if self._phases == 1:
            return frame
        if not (tracks and self._covers):
            return frame * self._phases + self._random.integers(0, self._phases, frame.shape)
        grids = self._random.integers(0, self._phases, (tracks, frame.shape[1]))
        return frame * self._phases + grids[track, np.arange(frame.shape[1])]


def _covering(
    random: np.random.Generator,
    lengths: np.ndarray,
    frames: int,
    counts: Mapping[int, int],
    *,
    lacking: np.ndarray,
    samples: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return conditions [sample], and tracks and starts int64 [2, sample, source].

    In a pass each target has as many samples as ``counts`` says: windows that cover all frames,
    without the rest of those in songs that lack it. Those of each source as a target, and those
    beside other targets, go through such windows, pass after pass.

    Args:
        random: is drawn from.
        lengths: frames of each track, [track].
        frames: of a window.
        counts: windows of a pass by condition number.
        lacking: songs without a source, bool [source, track].
        samples: how many.
    """
    in_pass, all_windows = np.repeat(list(counts), list(counts.values())), -(-lengths // frames)
    passes = range(-(-samples // len(in_pass)))
    condition = np.concatenate([random.permutation(in_pass) for _ in passes])[:samples]
    places = np.empty((2, samples, len(lacking)), np.int64)
    for source in range(len(lacking)):
        lost = all_windows.sum() - counts.get(source, 0)
        for rows, fewer in ((condition == source, lost), (condition != source, 0)):
            walk = np.empty((2, 0), np.int64)
            while walk.shape[1] < rows.sum():
                parts = [_cover(random, *track, frames) for track in enumerate(lengths)]
                one = random.permutation(np.concatenate(parts, axis=1), axis=1)
                silent = np.flatnonzero(lacking[source][one[0]])[:fewer]
                walk = np.concatenate([walk, np.delete(one, silent, axis=1)], axis=1)
            places[:, rows, source] = walk[:, : rows.sum()]
    return condition, places


def _cover(random: np.random.Generator, index: int, length: int, frames: int) -> np.ndarray:
    """Return int64 [2, window]: track and starts of the fewest windows that hold every frame.

    By how much they are too long together, some two of them and their neighbours overlap.
    """
    starts = np.arange(0, length, frames)
    surplus = starts[-1] + frames - length
    part = random.integers(0, surplus + 1)
    for overlap in (part, surplus - part):
        starts[random.integers(1, max(2, len(starts))) :] -= overlap
    return np.stack([np.full_like(starts, index), starts])


def set_chances(config: RunConfig) -> np.ndarray:
    """Return the chances of targets of 1, 2, 3 ... sources; left open, all sources are no target.

    >>> set_chances(RunConfig()).round(2).tolist()
    [0.57, 0.29, 0.14]
    """
    count = len(config.train.target_names or config.model.sources)
    most = max(1, count - (count == len(config.model.sources)))
    given = config.data.set_sizes
    weights = 0.5 ** np.arange(most) if given is None else np.array(given)
    return weights / weights.sum()


def _sets(
    random: np.random.Generator, condition: np.ndarray, targets: np.ndarray, config: RunConfig
) -> np.ndarray:
    """Return 1 for each source of the target, float32 [sample, source]: ``condition`` and others.

    All sets of a size are equally likely where conditions are.
    """
    chances = set_chances(config)
    size = 1 + random.choice(len(chances), len(condition), p=chances)
    order = random.random((len(condition), len(targets)))
    order[condition[:, None] == targets] = -1
    chosen = order.argsort(axis=1).argsort(axis=1) < size[:, None]
    members = np.zeros((len(condition), len(config.model.sources)), np.float32)
    members[:, targets] = chosen
    return members


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
