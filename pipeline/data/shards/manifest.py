"""The manifest of a shard folder: what is in it, byte for byte, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from lasaft.config import ModelConfig, Settings
from lasaft.errors import ConfigError, DataError
from lasaft.files import atomic_write_bytes, read_steadily, steadily
from pipeline.config import RunConfig
from pipeline.data.songs.layouts import MIXTURE

if TYPE_CHECKING:
    from pipeline.cluster.store import RemoteFolder

FORMAT = 1
FRAMES_PER_BATCH = 256
_MOST_NAMED = 5  # songs in a message
MANIFEST_NAME = "manifest.json"

Count = Annotated[int, Field(ge=0)]
Crc32 = Annotated[int, Field(ge=0, lt=2**32)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Split = Literal["train", "valid", "test"]
# What was done to a song's files, so that they are as its streams should be; where nothing was,
# nothing is said of it.
Changes = Annotated[tuple[str, ...], Field(exclude_if=lambda changes: not changes)]


class ShardSettings(Settings):
    """What every shard of a folder was made with; two folders with other settings never mix."""

    format: Literal[1] = FORMAT
    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    channels: Annotated[int, Field(ge=1)]
    sample_rate: Annotated[int, Field(ge=1)]
    n_fft: Annotated[int, Field(ge=2)]
    hop_length: Annotated[int, Field(ge=1)]
    max_frames_per_shard: Annotated[int, Field(ge=FRAMES_PER_BATCH)]
    # Grids of frames, hop_length / phases apart; of one nothing is said.
    phases: Annotated[int, Field(ge=1, exclude_if=lambda phases: phases == 1)] = 1

    @classmethod
    def of(cls, config: RunConfig) -> ShardSettings:
        """Return the settings that ``config`` asks for."""
        model = config.model
        marked = any("@" in source for source in model.sources) and config.data.phases > 1
        if marked or MIXTURE in model.sources or len(set(model.sources)) < len(model.sources):
            raise ConfigError(
                f"sources: got {', '.join(model.sources)}; allowed: names that differ from each "
                f"other and from {MIXTURE!r}, with phases above 1 without @"
            )
        data = config.data
        made = {name: getattr(data, name) for name in ("max_frames_per_shard", "phases")}
        return cls(**_fixed_by(model), **made)

    @property
    def streams(self) -> tuple[str, ...]:
        """What is in the shards: the sources, then the mixture."""
        return (*self.sources, MIXTURE)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a shard: the streams, then the sources on the further grids."""
        grids = range(1, self.phases)
        return (*self.streams, *(self.on_grid(name, n) for n in grids for name in self.sources))

    @staticmethod
    def on_grid(source: str, grid: int) -> str:
        """Return the column of a source on one of the grids, from 0."""
        return f"{source}@{grid}" if grid else source

    def shift(self, grid: int) -> int:
        """Return by how many samples the frames of a grid come later than those of the first."""
        return grid * self.hop_length // self.phases

    @property
    def bins(self) -> int:
        """Frequency bins of a frame."""
        return self.n_fft // 2 + 1

    @property
    def row_shape(self) -> tuple[int, int]:
        """Shape of one frame of one column: real parts then imaginary parts, bins."""
        return 2 * self.channels, self.bins

    @property
    def row_bytes(self) -> int:
        """Bytes of one frame of one column."""
        return 2 * 2 * self.channels * self.bins

    @property
    def frames_per_shard(self) -> int:
        """Frames in a full shard: whole record batches."""
        return self.max_frames_per_shard // FRAMES_PER_BATCH * FRAMES_PER_BATCH

    def frames(self, samples: int) -> int:
        """Return the STFT frames of a track of ``samples``."""
        return 1 + samples // self.hop_length

    def differences(self, other: ShardSettings) -> list[tuple[str, Any, Any]]:
        """Return (name, own value, other value) of each setting that differs."""
        pairs = [
            (name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields
        ]
        return [(name, own, theirs) for name, own, theirs in pairs if own != theirs]


def _fixed_by(model: ModelConfig) -> dict[str, Any]:
    """Return the settings of shards that a network fixes."""
    same = ("sources", "sample_rate", "n_fft", "hop_length")
    return {name: getattr(model, name) for name in same} | {"channels": model.audio_channels}


class Level(Settings):
    """How loud one column of a track is: largest and root-mean-square sample, full scale 1."""

    peak: float
    rms: float


class ShardEntry(Settings):
    """One Arrow IPC file."""

    path: str  # the file, relative to the shard folder, with forward slashes
    frames: Annotated[int, Field(ge=1)]  # rows in it
    size_bytes: Count  # length of the file
    sha256: Sha256  # of the whole file
    # For each column the byte where the values of each record batch begin.
    offsets: dict[str, tuple[Count, ...]]
    crc32: dict[str, tuple[Crc32, ...]]  # for each column the checksum of those values
    rest_crc32: Crc32  # checksum of all bytes that are no values: Arrow's metadata and padding

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
            raise ValueError(f"{path!r} leaves the shard folder")
        return path


class TrackEntry(Settings):
    """One track: how long and loud it is, what it was made from, and its shards in order."""

    name: str
    split: Split
    samples: Annotated[int, Field(ge=1)]
    frames: Annotated[int, Field(ge=1)]
    source_sha256: Sha256
    changes: Changes = ()
    levels: dict[str, Level]
    shards: Annotated[tuple[ShardEntry, ...], Field(min_length=1)]


class Loudness(Settings):
    """The largest sample of a column in one shard, and the sum of all squared."""

    peak: float
    energy: float


class ShardRecord(Settings):
    """What is kept beside a finished shard, so that a later run can trust it."""

    settings: ShardSettings  # what the shard was made with
    name: str  # of its track
    split: Split  # of its track
    samples: Annotated[int, Field(ge=1)]  # length of the whole track
    number: Count  # which of the track's shards it is, from 0
    source_sha256: Sha256  # of the track's audio files
    changes: Changes = ()
    loudness: dict[str, Loudness]  # of each column
    shard: ShardEntry  # the file


def track_entry(records: Sequence[ShardRecord]) -> TrackEntry:
    """Return the entry of a track from the records of all its shards, in order."""
    first = records[0]
    values = first.samples * first.settings.channels
    levels = {
        column: Level(
            peak=max(record.loudness[column].peak for record in records),
            rms=(sum(record.loudness[column].energy for record in records) / values) ** 0.5,
        )
        for column in first.settings.streams
    }
    return TrackEntry(
        name=first.name,
        split=first.split,
        samples=first.samples,
        frames=sum(record.shard.frames for record in records),
        source_sha256=first.source_sha256,
        changes=first.changes,
        levels=levels,
        shards=tuple(record.shard for record in records),
    )


class Manifest(Settings):
    """All tracks of a shard folder, sorted by split and name."""

    settings: ShardSettings
    tracks: tuple[TrackEntry, ...]

    @classmethod
    def of(cls, settings: ShardSettings, tracks: Iterable[TrackEntry]) -> Manifest:
        """Return the manifest of ``tracks``, which are put in order."""
        order = Split.__args__  # type: ignore[attr-defined]
        ordered = sorted(tracks, key=lambda track: (order.index(track.split), track.name))
        return cls(settings=settings, tracks=tuple(ordered))

    @model_validator(mode="after")
    def _adds_up(self) -> Manifest:
        for track in self.tracks:
            _require_sums(track, self.settings)
        return self

    @cached_property
    def hash(self) -> str:
        """The data's name: sha256 of everything in the manifest, and so of every byte."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def split(self, name: str) -> list[TrackEntry]:
        """Return the tracks of one split."""
        return [track for track in self.tracks if track.split == name]

    def too_short(self, num_frame: int) -> str:
        """Say which training tracks hold no window of so many frames; empty if all hold one.

        No draw takes a window of them, nor does ``coverage`` cover them.
        """
        short = [track.name for track in self.split("train") if track.frames < num_frame]
        if not short:
            return ""
        named = ", ".join(short[:_MOST_NAMED]) + (", ..." if len(short) > _MOST_NAMED else "")
        return (
            f"{len(short)} training songs are shorter than a window (num_frame {num_frame}) and "
            f"never drawn: {named}"
        )

    def require_model(self, model: ModelConfig) -> None:
        """Check that a network fits these shards.

        Raises:
            ConfigError: with one line for each option that differs.
        """
        problems = [
            f"{name}: got {value}; the shards were made with {getattr(self.settings, name)} "
            "(choose another shards_dir, or this value)"
            for name, value in _fixed_by(model).items()
            if getattr(self.settings, name) != value
        ]
        if problems:
            raise ConfigError(problems)


def _require_sums(track: TrackEntry, settings: ShardSettings) -> None:
    frames = settings.frames(track.samples)
    full, rest = divmod(frames, settings.frames_per_shard)
    wanted = [settings.frames_per_shard] * full + [rest] * (rest > 0)
    if track.frames != frames or [shard.frames for shard in track.shards] != wanted:
        raise ValueError(f"track {track.name!r}: its shards do not add up to its frames")
    for shard in track.shards:
        for numbers in (shard.offsets, shard.crc32):
            batches = {len(numbers.get(column, ())) for column in settings.columns}
            if batches != {-(-shard.frames // FRAMES_PER_BATCH)}:
                raise ValueError(f"shard {shard.path!r}: a column or a record batch is missing")
        last = max(starts[-1] for starts in shard.offsets.values())
        if last + settings.row_bytes > shard.size_bytes:
            raise ValueError(f"shard {shard.path!r}: values lie behind its end")


def manifest_text(manifest: Manifest) -> str:
    """Return the manifest as JSON with a line for each track."""
    settings = json.dumps(manifest.settings.model_dump(mode="json"), ensure_ascii=False)
    tracks = [
        json.dumps(track.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
        for track in manifest.tracks
    ]
    body = ",\n  ".join(tracks)
    return (
        f'{{\n"hash": "{manifest.hash}",\n"settings": {settings},\n"tracks": [\n  {body}\n]\n}}\n'
    )


def write_manifest(folder: Path, tracks: Sequence[TrackEntry], settings: ShardSettings) -> Manifest:
    """Publish ``manifest.json`` in ``folder`` by rename, if it is not there already."""
    manifest = Manifest.of(settings, tracks)
    data = manifest_text(manifest).encode()
    file = folder / MANIFEST_NAME
    if not file.exists() or read_steadily(file) != data:
        atomic_write_bytes(file, data)
    return manifest


def read_manifest(folder: Path | RemoteFolder) -> Manifest:
    """Read and check the manifest of a shard folder, here or in an object store.

    Raises:
        DataError: it is missing, damaged, or of another format.
    """
    file = folder / MANIFEST_NAME
    again = f"run: python -m jobs.preprocess --shards_dir {folder}"
    try:
        data = steadily(file.read_bytes, file)
    except FileNotFoundError:
        raise DataError(f"shards_dir {folder}: there is no {MANIFEST_NAME}; {again}") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); {again}") from error
    repair = f"run: python -m jobs.preprocess --repair --shards_dir {folder} --musdb_root <songs>"
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is damaged, not JSON ({error}); {repair}") from error
    settings = value.get("settings") if isinstance(value, dict) else None
    found = settings.get("format") if isinstance(settings, dict) else None
    if found != FORMAT:
        raise DataError(f"{file}: has format {found!r}; allowed: {FORMAT}; {repair}")
    recorded = value.pop("hash", None)
    try:
        manifest = Manifest.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file}: is damaged at {where}: {first['msg']}; {repair}") from error
    if manifest.hash != recorded:
        raise DataError(
            f"{file}: is damaged: its content has the hash {manifest.hash[:12]}, it says "
            f"{str(recorded)[:12]}; {repair}"
        )
    if manifest_text(manifest).encode() != data:
        raise DataError(f"{file}: is damaged: it reads the same, but bytes were changed; {repair}")
    return manifest
