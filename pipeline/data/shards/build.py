"""One track or a part of it: from audio files to finished shards with records."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from lasaft.errors import DataError
from lasaft.files import atomic_path, atomic_write_json, file_sha256, steadily
from pipeline.cluster.store import FULL, RemoteFile, RemoteFolder
from pipeline.data.shards.format import ShardWriter
from pipeline.data.shards.framing import Part, parts_of, spectrogram_batches
from pipeline.data.shards.manifest import (
    FRAMES_PER_BATCH,
    Loudness,
    ShardEntry,
    ShardRecord,
    ShardSettings,
)
from pipeline.data.shards.objects import is_uploaded, upload_shard
from pipeline.data.songs.tracks import Track, audio_blocks, fit_of, source_hash

RECORD_SUFFIX = ".json"
_LONGEST_STEM_BYTES = 200  # a file name holds 255, and ".000.arrow" and a temporary's marks follow
_ATTEMPTS = 2


@dataclass(frozen=True)
class Work:
    """One task: the shards of a track, or the one shard of a part of it."""

    track: Track  # one whose headers are right
    settings: ShardSettings  # of all shards of the folder
    folder: Path  # the shard folder
    part: Part | None = None  # of a folder of stems (None: the whole track)
    name: str = ""  # for messages
    store: RemoteFolder | None = None  # where finished shards go
    stays: bool = True  # whether they are kept in the folder as well

    @property
    def first_number(self) -> int:
        """The number of the first shard."""
        return self.part.number if self.part else 0

    def record_path(self, number: int) -> Path:
        """Where the record of a finished shard lies: beside it."""
        name = shard_name(self.track.split, self.track.name, number)
        return (self.folder / name).with_suffix(RECORD_SUFFIX)


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its records, or None because the disk is full."""

    records: tuple[ShardRecord, ...] | None  # of the shards, in order
    seconds: float = 0.0  # of audio in them
    reused: bool = False  # they were there and right


def file_stem(name: str) -> str:
    """Return a track's name as the start of a file name; a very long one is cut and hashed."""
    data = name.encode()
    if len(data) <= _LONGEST_STEM_BYTES:
        return name
    return f"{data[:180].decode(errors='ignore')}~{hashlib.sha256(data).hexdigest()[:12]}"


def shard_name(split: str, track: str, number: int) -> str:
    """Return the path of a shard in the shard folder, with forward slashes."""
    return f"{split}/{file_stem(track)}.{number:03d}.arrow"


def read_record(path: Path | RemoteFile) -> ShardRecord | None:
    """Return the record of a shard, or None if there is none that can be read."""
    try:
        return ShardRecord.model_validate_json(steadily(path.read_bytes, path))
    except (FileNotFoundError, ValidationError):
        return None


def build_shards(work: Work) -> Outcome:
    """Make the shards of a track, or the one of a part, unless they are there and right.

    A shard counts as right if the record beside it has these settings and this audio, and the
    sha256 of the file is the recorded one. A fault of the disk is tried once more.

    Raises:
        DataError: the track's samples are faulty (its name is not in the message).
    """
    torch.set_num_threads(1)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _build_or_reuse(work)
        except OSError as error:
            if error.errno in FULL:
                return Outcome(None)
            if attempt == _ATTEMPTS:
                text = f"{error.strerror or error} ({error.filename or work.folder})"
                raise DataError(text) from error
        except DataError as error:
            raise DataError(str(error).removeprefix(f"{work.track}: ")) from error
    raise AssertionError("unreachable")


def _build_or_reuse(work: Work) -> Outcome:
    source = source_hash(work.track)
    records = _finished(work, source)
    reused = records is not None
    records = records or _build(work, source)
    if work.store is not None:
        _to_store(work, work.store, records)
    frames = sum(record.shard.frames for record in records)
    seconds = frames * work.settings.hop_length / work.settings.sample_rate
    return Outcome(records, seconds, reused)


def _finished(work: Work, source: str) -> tuple[ShardRecord, ...] | None:
    first = _record(work, work.first_number)
    if first is None:
        return None
    parts = [work.part] if work.part else parts_of(first.samples, work.settings)
    records = []
    for part in parts:
        record = _record(work, part.number)
        if record is None or (record.settings, record.number) != (work.settings, part.number):
            return None
        if (record.name, record.split) != (work.track.name, work.track.split):
            return None
        if record.source_sha256 != source or not _is_whole(work, record.shard):
            return None
        records.append(record)
    return tuple(records)


def _record(work: Work, number: int) -> ShardRecord | None:
    """Return the record of a finished shard, from the folder or from the store."""
    path = work.record_path(number)
    found = read_record(path)
    if found is None and work.store is not None:
        found = read_record(work.store / path.relative_to(work.folder).as_posix())
    return found


def _is_whole(work: Work, entry: ShardEntry) -> bool:
    path = work.folder / entry.path
    if path.is_file():
        return file_sha256(path) == entry.sha256
    return work.store is not None and is_uploaded(work.store, entry)


def _to_store(work: Work, store: RemoteFolder, records: Sequence[ShardRecord]) -> None:
    """Put shards into the store, then their records; a shard that is there already is kept."""
    for record in records:
        path = work.record_path(record.number)
        if upload_shard(work.folder, store, record.shard):
            name = path.relative_to(work.folder).as_posix()
            (store / name).write_bytes(record.model_dump_json().encode())
        if not work.stays:
            (work.folder / record.shard.path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _build(work: Work, source: str) -> tuple[ShardRecord, ...]:
    part, settings = work.part, work.settings
    start, stop = (part.start, part.stop) if part else (0, None)
    blocks = audio_blocks(work.track, FRAMES_PER_BATCH * settings.hop_length, start, stop)
    meter = _Meter(settings, start)
    batches = spectrogram_batches(meter.measured(blocks), settings, part)
    shards = [
        _write_shard(work, number, _one_shard(batch, batches, settings))
        for number, batch in enumerate(batches, work.first_number)
    ]
    changes = fit_of(work.track).changes
    records = tuple(
        ShardRecord(
            settings=settings,
            name=work.track.name,
            split=work.track.split,  # type: ignore[arg-type]
            samples=part.samples if part else meter.at,
            number=number,
            source_sha256=source,
            changes=changes,
            loudness=meter.loudness(number),
            shard=shard,
        )
        for number, shard in enumerate(shards, work.first_number)
    )
    for record in records:
        atomic_write_json(work.record_path(record.number), record.model_dump(mode="json"))
    return records


def _one_shard(first: Tensor, rest: Iterator[Tensor], settings: ShardSettings) -> Iterator[Tensor]:
    """Yield the batches of one shard: ``first``, then as many of ``rest`` as belong to it."""
    frames = 0
    for batch in chain([first], rest):
        frames += batch.shape[1]
        yield batch
        if frames == settings.frames_per_shard:
            return


def _write_shard(work: Work, number: int, batches: Iterator[Tensor]) -> ShardEntry:
    name = shard_name(work.track.split, work.track.name, number)
    with atomic_path(work.folder / name) as temporary:
        first_frame = number * work.settings.frames_per_shard
        with ShardWriter(temporary, work.settings, str(work.track), first_frame) as writer:
            for batch in batches:
                writer.write(batch)
        entry = writer.entry(name)
        work.record_path(number).unlink(missing_ok=True)
    return entry


class _Meter:
    """Measures how loud each column is in each shard, block by block.

    A shard has the samples from its first frame's place to the next shard's.

    Args:
        at: the first sample of the first block, counted from the start of the track.
    """

    def __init__(self, settings: ShardSettings, at: int) -> None:
        self.at, self._columns = at, settings.streams
        self._span = settings.frames_per_shard * settings.hop_length
        self._peaks: dict[tuple[int, str], float] = defaultdict(float)
        self._energies: dict[tuple[int, str], float] = defaultdict(float)

    def measured(self, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the blocks, float32 [column, channel, sample], none longer than a shard."""
        for block in blocks:
            border = self._span - self.at % self._span
            for piece in (block[..., :border], block[..., border:]):
                if piece.shape[-1]:
                    self._measure(self.at // self._span, piece)
                    self.at += piece.shape[-1]
            yield block

    def _measure(self, number: int, piece: Tensor) -> None:
        for column, channels in zip(self._columns, piece, strict=True):
            key, values = (number, column), channels.reshape(-1)
            low, high = values.aminmax()
            self._peaks[key] = max(self._peaks[key], -float(low), float(high))
            self._energies[key] += float(values.dot(values))

    def loudness(self, number: int) -> dict[str, Loudness]:
        """Return the loudness of each column in the shard of this number."""
        return {
            column: Loudness(
                peak=self._peaks[number, column], energy=self._energies[number, column]
            )
            for column in self._columns
        }
