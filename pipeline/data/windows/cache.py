"""A node's cache of shards from an object store: bounded, shared by processes, safe when killed.

Each file is named by its sha256. It is filled under another name, checked, then renamed. Locks are
``flock``: the system drops them when a process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from lasaft.errors import ConfigError
from lasaft.files import open_own
from pipeline.cluster.locks import taken
from pipeline.data.shards.manifest import ShardEntry


class ShardCache:
    """Whole, checked copies of shards in a folder of this node.

    Args:
        folder: made if it is missing; several data sets and processes may share it.
        limit_bytes: what all copies together may take, unfinished ones included.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock_file():
                pass
        except OSError as error:
            raise ConfigError(
                f"cache_dir: cannot write in {folder} ({error.strerror}); allowed: a folder of "
                "yours on a disk of each node"
            ) from error

    def file(self, entry: ShardEntry) -> Path:
        """Return where the copy of a shard lies, if there is one."""
        return self.folder / f"{entry.sha256}.arrow"

    def open(self, entry: ShardEntry) -> BinaryIO | None:
        """Open a copy, or return None if there is none.

        It is not removed while the file, or a memory map of it, is open.
        """
        try:
            file = self.file(entry).open("rb")
        except FileNotFoundError:
            return None
        if not taken(file, fcntl.LOCK_SH) or not os.fstat(file.fileno()).st_nlink:
            file.close()  # it is being removed, or has just been
            return None
        os.utime(file.fileno())
        return file

    def discard(self, entry: ShardEntry) -> None:
        """Forget a copy that has turned out to be damaged."""
        with self._alone():
            self.file(entry).unlink(missing_ok=True)

    def begin(self, entry: ShardEntry, keep: Collection[str]) -> BinaryIO | None:
        """Set room aside for a copy and return its file to be filled.

        Copies that were used least recently make room, if no process uses them.

        Args:
            keep: the sha256 of shards that must not make room for it.

        Returns:
            The locked file, or None: the copy is there, another process fills it, or there is no
            room.

        Raises:
            OSError: the folder cannot be written.
        """
        with self._alone():
            if self.file(entry).exists():
                return None
            part = _part(self.file(entry))
            file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b")
            if not taken(file, fcntl.LOCK_EX):
                file.close()
                return None
            file.truncate(0)  # what a killed process has left in it
            if not self._make_room(entry.size_bytes, keep):
                part.unlink()
                file.close()
                return None
            file.truncate(entry.size_bytes)  # counts as taken from now on
            return file

    def publish(self, file: BinaryIO, entry: ShardEntry) -> None:
        """Let a filled and checked file be the copy of its shard."""
        file.flush()
        os.fsync(file.fileno())
        with self._alone():
            _part(self.file(entry)).replace(self.file(entry))
        file.close()

    def drop(self, file: BinaryIO, entry: ShardEntry) -> None:
        """Give up filling; the room is free again."""
        with self._alone():
            _part(self.file(entry)).unlink(missing_ok=True)
        file.close()

    def _make_room(self, needed: int, keep: Collection[str]) -> bool:
        taken, candidates = 0, []
        for path in self.folder.iterdir():
            if path.suffix == ".part" and _remove_unused(path):
                continue  # what a killed process has left
            if path.suffix in (".arrow", ".part"):
                status = path.stat()
                taken += status.st_size
                if path.suffix == ".arrow" and path.stem not in keep:
                    candidates.append((status.st_mtime_ns, status.st_size, path))
        for _, size, path in sorted(candidates):
            if taken + needed <= self.limit_bytes:
                break
            if _remove_unused(path):
                taken -= size
        return taken + needed <= self.limit_bytes

    def _lock_file(self) -> IO[str]:
        return open_own(self.folder / ".lock", "a")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock: names change under it alone."""
        with self._lock_file() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _part(path: Path) -> Path:
    return path.with_suffix(".part")


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a process holds its lock."""
    with path.open("rb") as file:
        if not taken(file, fcntl.LOCK_EX):
            return False
        path.unlink()
        return True
