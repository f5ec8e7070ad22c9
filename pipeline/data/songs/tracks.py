"""The tracks of MUSDB18 or of people's own data: listed and decoded."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lasaft.errors import AudioError, DataError
from lasaft.files import file_sha256
from lasaft.output import shown
from pipeline.config.data import Layout
from pipeline.data.songs.audio_files import (
    STEM_MP4_STREAMS,
    read_header,
    read_stem_mp4_headers,
    sound_blocks,
    stem_mp4_blocks,
)
from pipeline.data.songs.fitting import Fit, fit, fitted_blocks, resampled
from pipeline.data.songs.folders import STEM_MP4_SUFFIX, Place, find_places
from pipeline.data.songs.layouts import MIXTURE, OF_MANY_STEMS, OF_ONE_STEM
from pipeline.data.songs.splits import normal
from pipeline.data.songs.wanted import Wanted

OTHER_IS_THE_REST = "other is the sum of all stems that sources does not name"


@dataclass(frozen=True)
class Track:
    """One song: stems in wav or flac files, or a .stem.mp4 file."""

    name: str  # the folder's or file's name
    split: str  # train, valid or test
    path: Path  # the folder, or the file
    wanted: Wanted  # what it is read as
    layout: Layout | None  # how its files lie; None: in one .stem.mp4
    # The audio files of each source, then those of the mixture; several are summed. One for all.
    files: tuple[tuple[Path, ...], ...]
    lacks: tuple[str, ...] = ()  # the columns that it should have a file for, and has none

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of its sources, in the order of their condition numbers."""
        return self.wanted.sources

    @property
    def is_wav(self) -> bool:
        """Whether its stems are files."""
        return self.layout is not None

    @property
    def has_mixture(self) -> bool:
        """Whether a mixture is stored; without one it is the sum of the sources."""
        return bool(self.files[-1])

    @property
    def absent(self) -> frozenset[str]:
        """The sources that have no file, and are silence."""
        pairs = zip(self.sources, self.files, strict=False) if self.is_wav else ()
        return frozenset(source for source, files in pairs if not files)

    @property
    def columns(self) -> tuple[str, ...]:
        """The streams in our order: the sources, then the mixture."""
        return (*self.sources, MIXTURE)

    def __str__(self) -> str:
        return f"{self.split}/{self.name}"


@dataclass(frozen=True)
class TrackAudio:
    """The decoded audio of a track.

    Attributes:
        sources: float32 [source, channel, sample].
        mixture: float32 [channel, sample].
        sample_rate: in Hz.
    """

    sources: Tensor
    mixture: Tensor
    sample_rate: int


def list_tracks(musdb_root: Path, wanted: Wanted) -> list[Track]:
    """Return the tracks below ``musdb_root``, sorted by split and name; no audio is opened.

    Tracks lie in ``train/`` and ``test/`` (and ``valid/``, if there is one). Those of ``train/``
    that ``mus.yaml`` names under ``validation_tracks`` are valid; without a ``mus.yaml`` in the
    root, MUSDB18's own 14 are. A ``splits.yaml`` in the root says instead which track is in which
    split: lists of names under ``train``, ``valid`` and ``test``; tracks may then lie in the root
    too, and what it does not name is left out. Hidden folders and files are no tracks. Where no
    track of the set has a mixture, it is the sum of the sources. With ``missing_stems`` skip, a
    track that lacks a source is left out.

    Args:
        musdb_root: the data set's folder.
        wanted: which sources, found how.

    Raises:
        DataError: there is no such folder, or no track in it, or a file in it names tracks that
            it lacks, or no track has any of the sources.
    """
    tracks = _all_tracks(musdb_root, wanted)
    kept = [track for track in tracks if not _is_skipped(track)]
    if tracks and not kept:
        lacking = Counter(name for track in tracks for name in track.lacks)
        raise DataError(
            f"musdb_root {musdb_root}: each of the {len(tracks)} songs lacks a stem "
            f"({_counted(lacking)}), and missing_stems skip leaves them all out; allowed: "
            "--missing_stems silence, or sources that the songs have"
        )
    if wanted.dev_mode:
        kept = list({track.split: track for track in reversed(kept)}.values())[::-1]
    return kept


def listing_notes(musdb_root: Path, wanted: Wanted) -> Iterator[str]:
    """Yield what is worth knowing of the tracks below ``musdb_root``: layout, what is left out."""
    tracks = _all_tracks(musdb_root, wanted)
    layouts = {track.layout for track in tracks} - {None, "songs"}
    if layouts:
        yield f"the layout is {', '.join(sorted(map(str, layouts)))} (--layout)"
    if not layouts.isdisjoint(OF_MANY_STEMS) and "other" in wanted.sources:
        yield OTHER_IS_THE_REST
    if skipped := [str(track) for track in tracks if _is_skipped(track)]:
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        named = ", ".join(map(shown, skipped[:5]))
        yield f"missing_stems skip leaves out {len(skipped)} songs: {named}{more}"


def _is_skipped(track: Track) -> bool:
    return track.wanted.missing_stems == "skip" and any(x in track.sources for x in track.lacks)


def _all_tracks(musdb_root: Path, wanted: Wanted) -> list[Track]:
    root = musdb_root.absolute()
    try:
        places = find_places(root, wanted)
    except OSError as error:
        raise DataError(f"musdb_root {root}: cannot be read ({error.strerror})") from error
    _require_a_source(root, places, wanted)
    has_mixture = any(MIXTURE in place.stems for place in places)
    return [
        _track(place, place.split, wanted, has_mixture)
        for place in places
        if place.split is not None
    ]


def _require_a_source(root: Path, places: Sequence[Place], wanted: Wanted) -> None:
    """Refuse a set in which no song has any of the sources: then others were meant."""
    found = Counter(stem for place in places for stem in place.stems if stem != MIXTURE)
    if found and not found.keys() & set(map(normal, wanted.sources)):
        names = ",".join(sorted(found)[:20])
        raise DataError(
            f"musdb_root {root}: no song has a stem called {', '.join(wanted.sources)}; found: "
            f"{_counted(found)}; allowed: names that are there, such as --sources {names}"
        )


def _counted(found: Counter[str]) -> str:
    listed = [f"{name} ({count})" for name, count in found.most_common(20)]
    return ", ".join(listed) + (f" and {len(found) - 20} more" if len(found) > 20 else "")


def _track(place: Place, split: str, wanted: Wanted, has_mixture: bool) -> Track:
    if place.layout is None:
        files: tuple[tuple[Path, ...], ...] = ((place.path,),)
        return Track(place.name, split, place.path, wanted, None, files)
    stems = {name: tuple(files) for name, files in place.stems.items()}
    if place.layout in OF_MANY_STEMS:
        named = {MIXTURE, *map(normal, wanted.sources)} - {"other"}
        rest = [
            file for name, files in sorted(stems.items()) if name not in named for file in files
        ]
        stems["other"] = tuple(rest)
    files = tuple(stems.get(normal(name), ()) for name in (*wanted.sources, MIXTURE))
    lacks: tuple[str, ...] = ()
    if place.layout not in OF_ONE_STEM:
        expected = (*wanted.sources, MIXTURE) if has_mixture else wanted.sources
        lacks = tuple(name for name, found in zip(expected, files, strict=False) if not found)
    return Track(place.name, split, place.path, wanted, place.layout, files, lacks)


def fit_of(track: Track) -> Fit:
    """Return how the files of a track become its streams, by their headers.

    Raises:
        AudioError: a file cannot be read.
    """
    if not track.is_wav:
        headers = zip(STEM_MP4_STREAMS, read_stem_mp4_headers(track.path), strict=False)
        found = {name: [(track.path, header)] for name, header in headers}
        return fit(found, (), track.wanted, in_one=True)
    found = {
        column: [(file, read_header(file)) for file in files]
        for column, files in zip(track.columns, track.files, strict=True)
    }
    return fit(found, track.lacks, track.wanted)


def audio_blocks(
    track: Track, block_samples: int, start: int = 0, stop: int | None = None
) -> Iterator[Tensor]:
    """Decode a track piece by piece, checking every sample.

    Args:
        block_samples: samples in a block; the last may be shorter.
        start: the first sample; a .stem.mp4 is decoded as a whole only.
        stop: the sample after the last (None: the end).

    Yields:
        float32 [column, channel, sample], in the order of ``track.columns``.

    Raises:
        DataError: a stem is unreadable, shorter than its header says, or not finite.
    """
    try:
        for streams in _streams(track, block_samples, start, stop):
            block = streams
            if not track.has_mixture:
                block = torch.cat([block, sum(block[1:], start=block[0])[None]])
            _require_finite(track, block, start)
            start += block.shape[-1]
            yield block
    except AudioError as error:
        where = "" if track.is_wav else f"{track.path.name} "
        raise DataError(f"{track}: {where}{error}") from error


def _streams(track: Track, size: int, start: int, stop: int | None) -> Iterator[Tensor]:
    """Yield [column, channel, sample] of the sources, and of the mixture if it is stored."""
    if not track.is_wav:
        assert (start, stop) == (0, None)
        order = [STEM_MP4_STREAMS.index(column) for column in track.columns]
        blocks = stem_mp4_blocks(track.path, size)
        if track.wanted.resample:
            (rate,) = fit_of(track).rates
            blocks = resampled(blocks, rate, track.wanted.sample_rate, size)
        yield from (block[order] for block in blocks)
        return
    stored = track.files if track.has_mixture else track.files[:-1]
    found = fit_of(track)
    side_by_side = [file for files in stored for file in files if len(files) == 1]
    if len(side_by_side) == len(stored) and (found.faults or not found.changes):
        yield from sound_blocks(side_by_side, size, start, stop)
    elif found.faults:
        raise AudioError(found.faults[0])
    else:
        yield from fitted_blocks(stored, found, track.wanted, size, start=start, stop=stop)


def _require_finite(track: Track, block: Tensor, start: int) -> None:
    if math.isfinite(float(block.abs().amax())):  # amax hands on NaN
        return
    for column, stream in zip(track.columns, block, strict=True):
        bad = (~torch.isfinite(stream)).any(dim=0).nonzero()
        if len(bad):
            at = start + int(bad[0])
            raise DataError(f"{track}: {column} is not finite at sample {at}; allowed: numbers")


def read_track(track: Track) -> TrackAudio:
    """Decode a whole track; 16-bit samples equal musdb's.

    Raises:
        DataError: as :func:`audio_blocks`, or the track is empty, or not as it is wanted.
    """
    try:
        faults = fit_of(track).faults
    except AudioError as error:
        raise DataError(f"{track}: {error}") from error
    if faults:
        raise DataError(f"{track}: {'; '.join(faults)}")
    blocks = list(audio_blocks(track, 1 << 20))
    if not blocks:
        raise DataError(f"{track}: is empty (0 samples)")
    audio = torch.cat(blocks, dim=-1)
    return TrackAudio(audio[:-1], audio[-1], track.wanted.sample_rate)


def source_hash(track: Track) -> str:
    """Return the sha256 of the bytes of the track's files, whatever their paths and times.

    What is done to them follows from them, but for the rate that they are resampled to.
    """
    digest = hashlib.sha256()
    names = track.columns if track.is_wav else (STEM_MP4_SUFFIX,)
    for name, files in zip(names, track.files, strict=True):
        for file in files:
            digest.update(f"{name} {file_sha256(file)}\n".encode())
    if track.wanted.resample and fit_of(track).rates != {track.wanted.sample_rate}:
        digest.update(f"{track.wanted.sample_rate} Hz\n".encode())
    return digest.hexdigest()
