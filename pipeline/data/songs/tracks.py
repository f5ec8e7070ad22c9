"""The tracks of MUSDB18 or of people's own data: listed and decoded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lasaft.errors import AudioError, DataError
from lasaft.files import file_sha256
from pipeline.data.songs.audio_files import (
    STEM_MP4_STREAMS,
    read_sound_header,
    read_stem_mp4_headers,
    sound_blocks,
    stem_mp4_blocks,
)
from pipeline.data.songs.folders import MIXTURE, STEM_MP4_SUFFIX, find_places
from pipeline.data.songs.splits import normal

STEM_SUFFIXES = (".wav", ".flac")


@dataclass(frozen=True)
class Track:
    """One song: a folder of stems (wav or flac), or a .stem.mp4 file."""

    name: str  # the folder's or file's name
    split: str  # train, valid or test
    path: Path  # the folder, or the file
    sources: tuple[str, ...]  # the names of its sources, in the order of their condition numbers
    is_wav: bool  # a folder of stems
    # The audio files: one a source, then the mixture's if it has one; or one for all.
    files: tuple[Path, ...]
    has_mixture: bool  # a mixture is stored; without one it is the sum of the sources

    @property
    def columns(self) -> tuple[str, ...]:
        """The streams in our order: the sources, then the mixture."""
        return (*self.sources, MIXTURE)

    @property
    def stored(self) -> tuple[str, ...]:
        """The streams that are read: the columns, without a mixture that is a sum."""
        return self.columns if self.has_mixture else self.sources

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


def list_tracks(
    musdb_root: Path, *, sources: Sequence[str], is_wav: bool | None = None, dev_mode: bool = False
) -> list[Track]:
    """Return the tracks below ``musdb_root``, sorted by split and name; no audio is opened.

    Tracks lie in ``train/`` and ``test/`` (and ``valid/``, if there is one). Those of ``train/``
    that ``mus.yaml`` names under ``validation_tracks`` are valid; without a ``mus.yaml`` in the
    root, MUSDB18's own 14 are. A ``splits.yaml`` in the root says instead which track is in which
    split: lists of names under ``train``, ``valid`` and ``test``; tracks may then lie in the root
    too, and what it does not name is left out. Hidden folders and files are no tracks. A stem is
    a file ``<source>.wav`` or ``<source>.flac``; where no track of the set has a mixture, it is
    the sum of the sources.

    Args:
        musdb_root: the data set's folder.
        sources: names of the sources, each a file or a stream of .stem.mp4.
        is_wav: folders of stems, or .stem.mp4 (None: look at the files).
        dev_mode: keep only the first track of each split.

    Raises:
        DataError: there is no such folder, or no track in it, or a file in it names tracks that
            it lacks.
    """
    root = musdb_root.absolute()
    try:
        places, wav = find_places(root, is_wav)
        stems = [stems_in(place.path) if wav else {} for place in places]
    except OSError as error:
        raise DataError(f"musdb_root {root}: cannot be read ({error.strerror})") from error
    has_mixture = not wav or any(MIXTURE in found for found in stems)
    names = (*sources, MIXTURE) if has_mixture else tuple(sources)
    tracks = []
    for place, found in zip(places, stems, strict=True):
        if place.split is not None:
            files = [found.get(normal(name), [place.path / f"{name}.wav"])[0] for name in names]
            read = tuple(files) if wav else (place.path,)
            found_at = (place.name, place.split, place.path)
            tracks.append(Track(*found_at, tuple(sources), wav, read, has_mixture))
    if dev_mode:
        tracks = list({track.split: track for track in reversed(tracks)}.values())[::-1]
    return tracks


def stems_in(folder: Path) -> Mapping[str, list[Path]]:
    """Return the sound files of a track folder by the name of their stem, in normal spelling."""
    found: dict[str, list[Path]] = {}
    for item in sorted(folder.iterdir()):
        if item.suffix.lower() in STEM_SUFFIXES and not item.name.startswith("."):
            found.setdefault(normal(item.stem), []).append(item)
    return found


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
    if track.is_wav:
        blocks = sound_blocks(track.files, block_samples, start, stop)
        order = None
    else:
        assert (start, stop) == (0, None)
        blocks = stem_mp4_blocks(track.path, block_samples)
        order = [STEM_MP4_STREAMS.index(column) for column in track.columns]
    try:
        for streams in blocks:
            block = streams if order is None else streams[order]
            if not track.has_mixture:
                block = torch.cat([block, sum(block[1:], start=block[0])[None]])
            _require_finite(track, block, start)
            start += block.shape[-1]
            yield block
    except AudioError as error:
        where = "" if track.is_wav else f"{track.path.name} "
        raise DataError(f"{track}: {where}{error}") from error


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
        DataError: as :func:`audio_blocks`, or the track is empty.
    """
    blocks = list(audio_blocks(track, 1 << 20))
    if not blocks:
        raise DataError(f"{track}: is empty (0 samples)")
    audio = torch.cat(blocks, dim=-1)
    first = (
        read_sound_header(track.files[0]) if track.is_wav else read_stem_mp4_headers(track.path)[0]
    )
    return TrackAudio(audio[:-1], audio[-1], first.sample_rate)


def source_hash(track: Track) -> str:
    """Return the sha256 of the bytes of the track's files, whatever their paths and times."""
    digest = hashlib.sha256()
    for column, file in zip(track.stored, track.files, strict=track.is_wav):
        name = column if track.is_wav else STEM_MP4_SUFFIX
        digest.update(f"{name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
