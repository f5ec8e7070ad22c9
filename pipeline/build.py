"""One track: from audio files to finished shards with a record, or to a reason why not."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from lasaft.errors import DataError
from lasaft.files import atomic_path, atomic_write_json
from pipeline.framing import spectrogram_batches
from pipeline.manifest import (
    FRAMES_PER_BATCH,
    Level,
    ShardEntry,
    ShardSettings,
    TrackEntry,
    TrackRecord,
)
from pipeline.shards import ShardWriter, file_sha256
from pipeline.tracks import Track, audio_blocks, source_hash

_LONGEST_STEM_BYTES = 200  # a file name holds 255, and ".000.arrow" and a temporary's marks follow
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Outcome:
    """What became of a track: an entry for the manifest, or None because the disk is full."""

    entry: TrackEntry | None
    seconds: float = 0.0
    reused: bool = False


def file_stem(name: str) -> str:
    """Return a track's name as the start of a file name; a very long one is cut and hashed."""
    data = name.encode()
    if len(data) <= _LONGEST_STEM_BYTES:
        return name
    return f"{data[:180].decode(errors='ignore')}~{hashlib.sha256(data).hexdigest()[:12]}"


def record_path(folder: Path, track: Track) -> Path:
    """Return where the record of a finished track lies: beside its shards."""
    return folder / track.split / f"{file_stem(track.name)}.json"


def read_record(path: Path) -> TrackRecord | None:
    """Return a finished track's record, or None if there is none that can be read."""
    try:
        return TrackRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def build_track(track: Track, settings: ShardSettings, folder: Path) -> Outcome:
    """Make the shards of one track, unless they are there and right.

    A shard counts as right if the record beside it has these settings and this audio, and the
    sha256 of the file is the recorded one.

    Args:
        track: one that passed ``check_tracks``.
        settings: of all shards of the folder.
        folder: the shard folder.

    Raises:
        DataError: the track's samples are faulty (its name is not in the message).
    """
    torch.set_num_threads(1)
    try:
        source = source_hash(track)
        entry = _finished(track, settings, folder, source)
        reused = entry is not None
        entry = entry or _build(track, settings, folder, source)
    except OSError as error:
        if error.errno in _FULL:
            return Outcome(None)
        raise DataError(f"{error.strerror or error} ({error.filename or folder})") from error
    except DataError as error:
        raise DataError(str(error).removeprefix(f"{track}: ")) from error
    return Outcome(entry, entry.samples / settings.sample_rate, reused)


def _finished(
    track: Track, settings: ShardSettings, folder: Path, source: str
) -> TrackEntry | None:
    record = read_record(record_path(folder, track))
    if record is None or record.settings != settings:
        return None
    entry = record.track
    if (entry.name, entry.split, entry.source_sha256) != (track.name, track.split, source):
        return None
    for shard in entry.shards:
        path = folder / shard.path
        if not path.is_file() or file_sha256(path) != shard.sha256:
            return None
    return entry


def _build(track: Track, settings: ShardSettings, folder: Path, source: str) -> TrackEntry:
    record = record_path(folder, track)
    record.unlink(missing_ok=True)
    meter = _Meter(len(settings.columns))
    blocks = audio_blocks(track, FRAMES_PER_BATCH * settings.hop_length)
    batches = spectrogram_batches(meter.watch(blocks), settings)
    shards = _write_shards(track, settings, folder, batches)
    entry = TrackEntry(
        name=track.name,
        split=track.split,  # type: ignore[arg-type]
        samples=meter.samples,
        frames=sum(shard.frames for shard in shards),
        source_sha256=source,
        levels=dict(zip(settings.columns, meter.levels(), strict=True)),
        shards=tuple(shards),
    )
    assert entry.frames == settings.frames(entry.samples)
    atomic_write_json(record, TrackRecord(settings=settings, track=entry).model_dump(mode="json"))
    return entry


def _write_shards(
    track: Track, settings: ShardSettings, folder: Path, batches: Iterator[Tensor]
) -> list[ShardEntry]:
    shards: list[ShardEntry] = []
    batch = next(batches, None)
    while batch is not None:
        first = len(shards) * settings.frames_per_shard
        name = f"{track.split}/{file_stem(track.name)}.{len(shards):03d}.arrow"
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(folder / name))
            with ShardWriter(temporary, settings, str(track), first) as writer:
                while batch is not None and writer.frames < settings.frames_per_shard:
                    writer.write(batch)
                    batch = next(batches, None)
            shards.append(writer.entry(name))
    return shards


@dataclass
class _Meter:
    """Measures how loud each column is, while blocks pass through."""

    columns: int
    samples: int = 0
    _peaks: list[float] = field(default_factory=list)
    _energies: list[float] = field(default_factory=list)
    _channels: int = 1

    def watch(self, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        self._peaks, self._energies = [0.0] * self.columns, [0.0] * self.columns
        for block in blocks:
            self.samples += block.shape[-1]
            self._channels = block.shape[1]
            for index, stream in enumerate(block):
                self._peaks[index] = max(self._peaks[index], float(stream.abs().max()))
                flat = stream.reshape(-1)
                self._energies[index] += float(flat.dot(flat))
            yield block

    def levels(self) -> list[Level]:
        count = self.samples * self._channels
        return [
            Level(peak=peak, rms=(energy / count) ** 0.5)
            for peak, energy in zip(self._peaks, self._energies, strict=True)
        ]
