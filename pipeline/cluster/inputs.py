"""Folders of an object store that a run only reads, as folders of each machine that reads them."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lasaft.errors import ConfigError, DataError, StageError
from lasaft.files import atomic_path, open_own
from pipeline.cluster.locks import taken, wait_for
from pipeline.cluster.store import FULL, Found, RemoteFolder, is_hidden
from pipeline.config.folders import Input

_THREADS = 16
# Lists of splits and the like beside the tracks, and what a song says of itself in YAML, are read
# with the names.
_SMALL_BYTES = 1 << 20


class InputFolder:
    """A folder of an object store with a copy here: of its names at first, of contents on demand.

    Each object has a file here with its size and its time. One whose content was not fetched is
    empty space that has no permissions (mode 0), so that nothing takes it for the content.

    Args:
        source: says where it lies, there and here.
    """

    def __init__(self, source: Input) -> None:
        self._source, self._root = source, source.root
        self._remote = RemoteFolder(source.address, source.option)
        self._held = source.root.parent / "held"

    def list(self) -> None:
        """Let the names here be those in the store, and fetch what is small.

        Raises:
            ConfigError: nothing lies at the address, or it cannot be copied here.
            DataError: the store does not answer or refuses.
        """
        self._remote.reach()
        try:
            self._held.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cache_dir: cannot write in {self._source.cache} ({error.strerror}); allowed: a "
                "folder of yours on a disk of each node"
            ) from error
        there = self._listed("")
        if not there:
            raise ConfigError(
                f"{self._source.option}: nothing lies at {self._remote}; allowed: the address of a "
                "folder with files in it"
            )
        wanted = there
        if not self._source.whole:
            small = {name: one for name, one in there.items() if one.size <= _SMALL_BYTES}
            wanted = {k: v for k, v in small.items() if "/" not in k or k.endswith(".yaml")}
        self._fetch(self._lacking(wanted))

    @contextmanager
    def at_hand(self, places: Iterable[str]) -> Iterator[None]:
        """Have the contents of folders or files here inside the ``with``.

        Those that were used least recently make room for them, if no process uses them.

        Raises:
            DataError: the store does not answer or refuses, or an object changes while it is read.
            StageError: the disk is full.
        """
        with ExitStack() as stack:
            for place in places:
                stack.enter_context(self._one_at_hand(place))
            yield

    @contextmanager
    def _one_at_hand(self, place: str) -> Iterator[None]:
        there = self._listed(place)
        if self._source.whole:
            self._fetch(self._lacking(there))
            yield
            return
        name = hashlib.sha256(place.encode()).hexdigest()[:32]
        with open_own(self._held / name, "a+") as lock:
            while True:
                wait_for(lock, fcntl.LOCK_SH)
                lacking = self._lacking(there)
                if not lacking:
                    break
                fcntl.flock(lock, fcntl.LOCK_UN)
                wait_for(lock)
                lock.truncate(0)
                lock.write(f"{self._root.name}/{place}")
                lock.flush()
                for leftover in (self._root / place).rglob(".*.tmp-*"):  # of a killed process
                    leftover.unlink()
                lacking = self._lacking(there)
                self._make_room(sum(found.size for found in lacking.values()))
                self._fetch(lacking)
                fcntl.flock(lock, fcntl.LOCK_UN)
            os.utime(lock.fileno())
            yield

    def _listed(self, place: str) -> Mapping[str, Found]:
        """Return what lies below a place, or the file that it is, and name all of it here."""
        found = self._remote.at(place)
        there = {name: one for name, one in found.items() if not is_hidden(name)}
        self._held.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root.mkdir(exist_ok=True)
        with open_own(self._held.parent / ".names", "a") as lock:
            wait_for(lock)
            for path in _files(self._root / place):
                if path.relative_to(self._root).as_posix() not in there:
                    self._drop(path)
            for name, found in there.items():
                if not _is_like(self._root / name, found):
                    _empty(self._root / name, found)
        return there

    def _lacking(self, there: Mapping[str, Found]) -> dict[str, Found]:
        return {
            name: found
            for name, found in there.items()
            if not _is_like(path := self._root / name, found) or _is_empty(path)
        }

    def _fetch(self, wanted: Mapping[str, Found]) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self._get, wanted.items()):
                pass

    def _get(self, item: tuple[str, Found]) -> None:
        name, found = item
        path = self._root / name
        try:
            with atomic_path(path) as fresh:
                (self._remote / name).get(fresh)
                _set_time(fresh, found)
                if not _is_like(fresh, found):
                    raise DataError(
                        f"{self._remote / name}: changed while it was read; run it again"
                    )
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise StageError(
                f"cache_dir: the disk is full in {self._source.cache} while "
                f"{self._remote / name} was fetched; make room, or give a smaller cache_gb or "
                "another cache_dir"
            ) from error

    def _make_room(self, needed: int) -> None:
        """Give up the contents that were used least recently, as far as nobody uses them."""
        copies: list[tuple[int, Path, list[Path]]] = []
        for held in self._source.cache.glob("*/held/*"):
            if place := held.read_text():  # else nobody has fetched anything for it yet
                copy = held.parent.parent / place
                files = [path for path in _files(copy) if not _is_empty(path)]
                copies.append((held.stat().st_mtime_ns, held, files))
        size = sum(path.stat().st_size for _, _, files in copies for path in files)
        for _, held, files in sorted(copies):
            if size + needed <= self._source.limit_bytes:
                return
            with open_own(held, "a") as lock:
                if taken(lock):
                    for path in files:
                        status = path.stat()
                        _empty(path, Found(status.st_size, status.st_mtime_ns // 10**9))
                        size -= status.st_size

    def _drop(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # a store has no empty folders
            for folder in path.relative_to(self._root).parents[:-1]:
                (self._root / folder).rmdir()


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    found = (Path(folder, name) for folder, _, names in os.walk(place) for name in names)
    return [path for path in found if not path.name.startswith(".")]


def _is_like(path: Path, found: Found) -> bool:
    """Return whether a file has the size and the time of an object."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (status.st_size, status.st_mtime_ns) == (found.size, (found.seconds or 0) * 10**9)


def _is_empty(path: Path) -> bool:
    return path.stat().st_mode & 0o777 == 0


def _empty(path: Path, found: Found) -> None:
    """Let a file have the size and the time of an object, and no content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0)
    try:
        os.truncate(handle, found.size)
        _set_time(handle, found)
    finally:
        os.close(handle)


def _set_time(file: Path | int, found: Found) -> None:
    time_ns = (found.seconds or 0) * 10**9
    os.utime(file, ns=(time_ns, time_ns))
