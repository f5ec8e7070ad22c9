"""Shards of an object store as a shard set: from cached copies, or by range reads.

Training starts at once: what is not in the node's cache yet is read from the store, a record batch
at a time, while whole shards are fetched in the background in the order of the draw plan.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor

from lasaft.errors import DataError, StageError
from pipeline.cluster.store import FULL, RemoteFolder, patiently
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder, cache_home
from pipeline.data.shards.format import batch_rows
from pipeline.data.shards.manifest import Manifest, ShardEntry, read_manifest
from pipeline.data.shards.store import shard_place
from pipeline.data.windows.cache import ShardCache
from pipeline.data.windows.reader import Reader, ShardReader, ShardSet, Touched

if TYPE_CHECKING:
    from pyarrow import NativeFile

_FILL_THREADS = 2
_READ_THREADS = 16
_READ_AHEAD_BYTES = 512 * 2**20
_MOST_OPEN_OBJECTS = 512
_FETCHES = 2  # a byte may change on its way through the network: a second try tells


def open_shards(config: RunConfig) -> ShardSet:
    """Open the shards of a run, wherever they lie; close them, or use a ``with``.

    Raises:
        ConfigError: the address or the cache's folder cannot be used.
        DataError: the manifest is missing or damaged.
    """
    place = shard_place(RunFolder.of(config))
    if not isinstance(place, RemoteFolder):
        return ShardSet(place)
    data = config.data
    cache = ShardCache(data.cache_dir or cache_home() / "shards", int(data.cache_gb * 1e9))
    return RemoteShardSet(place, read_manifest(place), cache)


class RemoteShardSet(ShardSet):
    """The shards of a :class:`RemoteFolder`; close it to end its threads."""

    def __init__(self, store: RemoteFolder, manifest: Manifest, cache: ShardCache) -> None:
        super().__init__(store, manifest)
        self._batches = _RangeReads(store, manifest)
        self._filler = _Filler(store, manifest, cache)
        self._cache = cache

    def reader(self, entry: ShardEntry) -> Reader:
        """Return the open cached copy of a shard, or else what reads it from the store."""
        self._filler.raise_fault()
        with self._lock:
            found = self._open.get(entry.path) or self._open_copy(entry)
            if found is None:
                return _RemoteReader(self._batches, entry)
            return self._used(entry, found)

    def _open_copy(self, entry: ShardEntry) -> ShardReader | None:
        file = self._cache.open(entry)
        if file is None:
            return None
        try:
            return _CachedReader(self, entry, self._touched.setdefault(entry.path, set()), file)
        except DataError:
            self.forget(entry)
            return None

    def forget(self, entry: ShardEntry) -> None:
        """Give up the cached copy of a shard, because it is damaged."""
        self._cache.discard(entry)
        with self._lock:
            self._open.pop(entry.path, None)
            self._touched.pop(entry.path, None)

    def read_direct(self, entry: ShardEntry, column: str, index: int) -> Tensor:
        """Return a record batch from the store, float16 [frame, 2 * channels, bins]."""
        return self._batches.get(entry, column, index)

    def fill(self, order: Iterable[ShardEntry]) -> None:
        """Fetch whole shards in the background in this order; goes on if it does already."""
        self._batches.forget()
        self._filler.start(order)

    def close(self) -> None:
        """End the background threads; safe to call again."""
        self._filler.close()
        self._batches.close()


class _CachedReader(ShardReader):
    """A cached copy; where it is damaged it is given up, and the store is read."""

    def __init__(
        self, shards: RemoteShardSet, entry: ShardEntry, touched: Touched, file: BinaryIO
    ) -> None:
        self._shards, self._file = shards, file
        super().__init__(shards.folder, entry, shards.manifest.settings, touched)

    def _opened(self) -> BinaryIO:
        return self._file  # the lock on it lasts as long as the map

    def batch(self, column: str, index: int) -> Tensor:
        try:
            return super().batch(column, index)
        except DataError:
            self._shards.forget(self._entry)
            return self._shards.read_direct(self._entry, column, index)


class _RemoteReader:
    """Reads a shard that is not in the cache."""

    def __init__(self, reads: _RangeReads, entry: ShardEntry) -> None:
        self._reads, self._entry = reads, entry

    def batch(self, column: str, index: int) -> Tensor:
        return self._reads.get(self._entry, column, index)

    def prefetch(self, column: str, index: int, first: int, rows: int) -> None:
        self._reads.start(self._entry, column, index)


class _RangeReads:
    """Record batches from the store, several at once, each checked by its crc32."""

    def __init__(self, store: RemoteFolder, manifest: Manifest) -> None:
        self._store, self._settings = store, manifest.settings
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._objects: OrderedDict[str, NativeFile] = OrderedDict()
        self._ahead: dict[tuple[str, str, int], Future[Tensor]] = {}
        self._ahead_bytes = 0
        self._pool = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="shard-fetch")

    def start(self, entry: ShardEntry, column: str, index: int) -> None:
        """Begin to read a record batch that will be needed soon."""
        key, size = (entry.path, column, index), self._size(entry, index)
        with self._lock:
            if key not in self._ahead and self._ahead_bytes + size <= _READ_AHEAD_BYTES:
                self._ahead[key] = self._pool.submit(self._read, entry, column, index)
                self._ahead_bytes += size

    def get(self, entry: ShardEntry, column: str, index: int) -> Tensor:
        """Return a record batch, float16 [frame, 2 * channels, bins]."""
        with self._lock:
            ahead = self._ahead.pop((entry.path, column, index), None)
            if ahead is not None:
                self._ahead_bytes -= self._size(entry, index)
        return self._read(entry, column, index) if ahead is None else ahead.result()

    def forget(self) -> None:
        """Drop what was read ahead and never asked for."""
        with self._lock:
            self._ahead.clear()
            self._ahead_bytes = 0

    def _size(self, entry: ShardEntry, index: int) -> int:
        return batch_rows(entry.frames)[index] * self._settings.row_bytes

    def _read(self, entry: ShardEntry, column: str, index: int) -> Tensor:
        start, size = entry.offsets[column][index], self._size(entry, index)
        source = self._object(entry)
        for _ in range(_FETCHES):
            data = patiently(
                str(self._store / entry.path), partial(source.read_at, size, start), self._stop
            )
            if zlib.crc32(data) == entry.crc32[column][index]:
                flat = torch.frombuffer(bytearray(data), dtype=torch.float16)
                return flat.view(-1, *self._settings.row_shape)
        raise DataError(
            damaged(self._store, entry, f"is damaged in column {column}, record batch {index}")
        )

    def _object(self, entry: ShardEntry) -> NativeFile:
        with self._lock:
            found = self._objects.get(entry.path)
        if found is None:
            found = open_object(self._store, entry)
        with self._lock:
            self._objects[entry.path] = found
            self._objects.move_to_end(entry.path)
            if len(self._objects) > _MOST_OPEN_OBJECTS:
                self._objects.popitem(last=False)
        return found

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


class _Filler:
    """Threads that fetch whole shards into the cache; the first fault ends them."""

    def __init__(self, store: RemoteFolder, manifest: Manifest, cache: ShardCache) -> None:
        self._store, self._cache = store, cache
        self._own = {shard.sha256 for track in manifest.tracks for shard in track.shards}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._order: Iterator[ShardEntry] = iter(())
        self._threads: list[threading.Thread] = []
        self._fault: BaseException | None = None

    def start(self, order: Iterable[ShardEntry]) -> None:
        if self._stop.is_set() or any(thread.is_alive() for thread in self._threads):
            return
        self._order = iter(order)
        self._threads = [
            threading.Thread(target=self._fill, name="shard-fill", daemon=True)
            for _ in range(_FILL_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _fill(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    entry = next(self._order, None)
                if entry is None:
                    return
                self._fetch(entry)
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that reads
            self._fault = error
            self._stop.set()

    def _fetch(self, entry: ShardEntry) -> None:
        name = self._store / entry.path
        try:
            file = self._cache.begin(entry, self._own)
            if file is None:
                return
            try:
                if self._is_filled(file, entry):
                    self._cache.publish(file, entry)
            finally:
                if not file.closed:
                    self._cache.drop(file, entry)
        except OSError as error:
            full = "the disk is full" if error.errno in FULL else error.strerror
            raise StageError(
                f"cache_dir: {full} in {self._cache.folder} while {name} was fetched; make room, "
                "or give a smaller cache_gb or another cache_dir"
            ) from error

    def _is_filled(self, file: BinaryIO, entry: ShardEntry) -> bool:
        """Fill ``file`` from the store; return False if stopped before the end."""
        source = open_object(self._store, entry)
        for _ in range(_FETCHES):
            digest = hashlib.sha256()
            file.seek(0)
            for data in (self._store / entry.path).chunks(source, entry.size_bytes, self._stop):
                if self._stop.is_set():
                    return False
                digest.update(data)
                file.write(data)
            if digest.hexdigest() == entry.sha256:
                return True
        raise DataError(damaged(self._store, entry, "its sha256 is not the manifest's"))

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        self._stop.set()
        self.join()


def open_object(store: RemoteFolder, entry: ShardEntry) -> NativeFile:
    """Open a shard in the store.

    Raises:
        DataError: it is missing, has another length, or the store does not answer.
    """
    file = (store / entry.path).open()
    if file.size() != entry.size_bytes:
        what = f"has {file.size()} bytes; the manifest says {entry.size_bytes}"
        raise DataError(damaged(store, entry, what))
    return file


def damaged(store: RemoteFolder, entry: ShardEntry, what: str) -> str:
    """Return the message about a shard that is not what the manifest says."""
    return (
        f"shard {store / entry.path}: {what}; put it there again: python -m jobs.preprocess "
        f"--shards_dir '{store.address}' --musdb_root <MUSDB18>"
    )
