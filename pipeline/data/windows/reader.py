"""Checked, zero-copy reading of shards: memory maps, and windows out of them."""

from __future__ import annotations

import mmap
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn, Protocol, Self

import torch
from torch import Tensor

from lasaft.errors import DataError
from pipeline.data.shards.format import batch_rows, gaps, value_regions
from pipeline.data.shards.manifest import (
    FRAMES_PER_BATCH,
    Manifest,
    ShardEntry,
    ShardSettings,
    TrackEntry,
    read_manifest,
)

if TYPE_CHECKING:
    from pipeline.cluster.store import RemoteFolder

_MOST_OPEN_SHARDS = 256  # below the usual limit of 1024 open files, for several readers
# A private map is writable without touching the file, so that torch takes it; no swap is set aside.
_MAP_FLAGS = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)


Touched = set[tuple[str, int]]  # (column, record batch)


class Reader(Protocol):
    """One shard, wherever it lies."""

    def batch(self, column: str, index: int) -> Tensor:
        """Return one record batch of a column, float16 [frame, 2 * channels, bins]."""
        ...

    def prefetch(self, column: str, index: int, first: int, rows: int) -> None:
        """Begin to fetch rows of a record batch that will be needed soon."""
        ...


class ShardReader:
    """A memory-mapped shard; every byte is checked before it is handed out.

    Size and Arrow metadata are checked here, the values of a record batch when they are first
    touched. Arrow itself reads flipped bits without an error.

    Args:
        entry: what the manifest says about the file.
        touched: (column, batch) pairs that have been checked before; new ones are added.

    Raises:
        DataError: the file is missing or is not what the manifest says.
    """

    def __init__(
        self,
        folder: Path | RemoteFolder,
        entry: ShardEntry,
        settings: ShardSettings,
        touched: Touched | None = None,
    ) -> None:
        self._folder, self._entry, self._settings = folder, entry, settings
        self._touched = set() if touched is None else touched
        self._rows = batch_rows(entry.frames)
        try:
            with self._opened() as file:
                size = os.fstat(file.fileno()).st_size
                if size != entry.size_bytes:
                    self._damaged(f"has {size} bytes; the manifest says {entry.size_bytes}")
                protection = mmap.PROT_READ | mmap.PROT_WRITE
                self._map = mmap.mmap(file.fileno(), 0, flags=_MAP_FLAGS, prot=protection)
        except OSError as error:
            self._damaged(f"cannot be opened ({error.strerror})")
        self._check_rest()

    def _opened(self) -> BinaryIO:
        return Path(str(self._folder), self._entry.path).open("rb")

    def _damaged(self, what: str) -> NoReturn:
        raise DataError(
            f"shard {self._folder / self._entry.path}: {what}; repair it: "
            f"python -m jobs.preprocess --repair --shards_dir {self._folder} --musdb_root <songs>"
        )

    def _check_rest(self) -> None:
        entry, view = self._entry, memoryview(self._map)
        regions = value_regions(entry.offsets, entry.frames, self._settings)
        checksum = zlib.crc32(b"")
        for start, end in gaps(regions, entry.size_bytes):
            checksum = zlib.crc32(view[start:end], checksum)
        if checksum != entry.rest_crc32:
            self._damaged("is damaged in its Arrow metadata, or is another file")

    def batch(self, column: str, index: int) -> Tensor:
        """Return one record batch of a column, float16 [frame, 2 * channels, bins], no copy."""
        start, rows = self._entry.offsets[column][index], self._rows[index]
        size = rows * self._settings.row_bytes
        if (column, index) not in self._touched:
            checksum = zlib.crc32(memoryview(self._map)[start : start + size])
            if checksum != self._entry.crc32[column][index]:
                self._damaged(f"is damaged in column {column}, record batch {index}")
            self._touched.add((column, index))
        flat = torch.frombuffer(self._map, dtype=torch.float16, count=size // 2, offset=start)
        return flat.view(rows, *self._settings.row_shape)

    def prefetch(self, column: str, index: int, first: int, rows: int) -> None:
        """Ask the system to read rows of a record batch now; all of it, if it is to be checked."""
        start, size = self._entry.offsets[column][index], self._settings.row_bytes
        if (column, index) not in self._touched:
            first, rows = 0, self._rows[index]
        begin = (start + first * size) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, begin, start + (first + rows) * size - begin)


class ShardSet:
    """The shards of a folder as one thing to read windows from; safe to use from many threads.

    Args:
        manifest: its manifest, where it has been read already.

    Raises:
        DataError: the manifest is missing or damaged.
    """

    def __init__(self, folder: Path | RemoteFolder, manifest: Manifest | None = None) -> None:
        self.folder = folder
        self.manifest = manifest or read_manifest(folder)
        self._lock = threading.RLock()
        self._open: OrderedDict[str, ShardReader] = OrderedDict()
        self._touched: dict[str, Touched] = {}

    def reader(self, entry: ShardEntry) -> Reader:
        """Return the open reader of a shard; the least recently used one is closed."""
        with self._lock:
            found = self._open.get(entry.path)
            if found is None:
                touched = self._touched.setdefault(entry.path, set())
                found = ShardReader(self.folder, entry, self.manifest.settings, touched)
            return self._used(entry, found)

    def _used(self, entry: ShardEntry, reader: ShardReader) -> ShardReader:
        self._open[entry.path] = reader
        self._open.move_to_end(entry.path)
        if len(self._open) > _MOST_OPEN_SHARDS:
            self._open.popitem(last=False)
        return reader

    def fill(self, order: Iterable[ShardEntry]) -> None:
        """Begin to copy shards to this node in the order of use; those of a folder need no copy."""

    def close(self) -> None:
        """End what works in the background; here nothing does."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _places(
        self, track: TrackEntry, column: str, start: int, count: int
    ) -> Iterator[tuple[ShardEntry, str, int, int, int]]:
        """Yield (shard, its column, batch, first row, rows) of the ``count`` frames of a window."""
        settings = self.manifest.settings
        frame, grid = divmod(start, settings.phases)
        end, per_shard = min(frame + count, track.frames), settings.frames_per_shard
        name = settings.on_grid(column, grid)
        while frame < end:
            number, row = divmod(frame, per_shard)
            batch, first = divmod(row, FRAMES_PER_BATCH)
            rows = min(FRAMES_PER_BATCH - first, track.shards[number].frames - row, end - frame)
            yield track.shards[number], name, batch, first, rows
            frame += rows

    def shards_of(self, track: TrackEntry, start: int, count: int) -> Iterator[ShardEntry]:
        """Yield the shards that hold a window."""
        per_shard = self.manifest.settings.frames_per_shard
        frame = start // self.manifest.settings.phases
        last = min(frame + count, track.frames) - 1
        yield from track.shards[frame // per_shard : last // per_shard + 1]

    def read_rows(
        self, track: TrackEntry, column: str, start: int, out: Tensor, *, swap: bool = False
    ) -> None:
        """Copy the frames from ``start`` on into ``out``, zeros after the track's end.

        Args:
            start: the first frame, counted on all grids together: frame * phases + grid.
            out: [frame, 2 * channels, bins], float16 or float32, of any length and strides; a
                contiguous float16 one is filled as fast as memory is copied.
            swap: left and right change places (stereo).

        Raises:
            DataError: a byte in the window is not what the manifest says.
        """
        at = 0
        for entry, name, batch, first, rows in self._places(track, column, start, len(out)):
            values = self.reader(entry).batch(name, batch)[first : first + rows]
            piece = out[at : at + rows]
            if out.dtype == torch.float16:
                values, piece = values.view(torch.int16), piece.view(torch.int16)  # copied faster
            if swap:
                for channel in range(piece.shape[1]):  # 0 with 1 (real), 2 with 3 (imaginary)
                    piece[:, channel].copy_(values[:, channel ^ 1])
            else:
                piece.copy_(values)
            at += rows
        if at < len(out):
            out[at:].zero_()

    def read_window(
        self, track: TrackEntry, column: str, start: int, out: Tensor, *, swap: bool = False
    ) -> None:
        """Do the same as :meth:`read_rows`, into [2 * channels, frame, bins]."""
        self.read_rows(track, column, start, out.transpose(0, 1), swap=swap)

    def prefetch(self, track: TrackEntry, column: str, start: int, count: int) -> None:
        """Ask the system to read a window that will be needed soon."""
        for entry, name, batch, first, rows in self._places(track, column, start, count):
            self.reader(entry).prefetch(name, batch, first, rows)
