"""Locks on files: the system drops them when a process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Protocol

from lasaft.errors import ConfigError, StageError
from lasaft.files import first_link, open_own, steadily

# What file systems of the network answer that have no locks, or whose lock service is off.
_REFUSED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_FILE = (errno.ELOOP, errno.ENXIO, errno.EISDIR)
_NAME = ".lock"
_held: set[tuple[Path, int]] = set()  # folders, each with the thread that works alone in it


class Lock(Protocol):
    """What one command holds at a time, wherever it lies."""

    def take(self, owner: str) -> str | None:
        """Become its owner and return None, or return who that is already, in words."""
        ...

    def drop(self) -> None:
        """Leave it to others; only its owner may."""
        ...


class FileLock:
    """The lock of the file ``path``, which is made where it is missing and then stays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def take(self, owner: str) -> str | None:
        """Become its owner and return None, or return who that is already, in words."""
        return steadily(lambda: self._take(owner), self._path)

    def _take(self, owner: str) -> str | None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            # Nothing is written before the lock is ours.
            file = stack.enter_context(open_own(self._path, "r+", errors="replace"))
            if not taken(file):
                found = "".join(filter(str.isprintable, file.read(500)))
                return found or "one that has just begun"
            file.truncate()
            file.write(owner)
            file.flush()
            stack.pop_all()
        self._file = file
        return None

    def drop(self) -> None:
        """Leave it to others; only its owner may."""
        assert self._file is not None, "dropped before it was taken"
        self._file.truncate(0)
        self._file.close()


def taken(file: IO[str] | IO[bytes], kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock of an open file, if nobody else holds it, and say whether it was taken.

    Args:
        file: holds the lock until it is closed.
        kind: ``fcntl.LOCK_EX``, or ``fcntl.LOCK_SH`` beside other shared ones.

    Raises:
        StageError: its file system has no locks.
    """
    try:
        _flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(file: IO[str] | IO[bytes], kind: int = fcntl.LOCK_EX) -> None:
    """Take the lock of an open file, which holds it until it is closed; wait while others do.

    Raises:
        StageError: its file system has no locks.
    """
    _flock(file, kind)


def _flock(file: IO[str] | IO[bytes], how: int) -> None:
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise StageError(
            f"{file.name}: its file system refuses locks ({error.strerror}), without which two "
            "commands would spoil each other's work; allowed: a folder on one that has them (NFS "
            "with its lock service, Lustre mounted with flock, a local disk)"
        ) from error


def in_use(option: str, place: str, other: str) -> StageError:
    """Return the error of a folder that another command writes to."""
    return StageError(
        f"{option}: {place} is in use by another running command, {other}; wait for it, stop "
        f"it, or name another {option}"
    )


def is_held(folder: Path) -> bool:
    """Return whether this thread works alone in a folder."""
    return (folder.resolve(), threading.get_ident()) in _held


@contextmanager
def alone(folder: Path, option: str, written: Iterable[Path] = ()) -> Iterator[None]:
    """Be the only command that writes to a folder; a thread may say so again inside of it.

    Args:
        option: which says the folder.
        written: what is written in it.

    Raises:
        ConfigError: the folder cannot be written, or something that is written is a link.
        StageError: another command writes there, or its file system has no locks.
    """
    here = (folder.resolve(), threading.get_ident())
    if here in _held:
        yield
        return
    if (link := first_link(written)) is not None:
        raise ConfigError(
            f"{option}: {link} is a link, and nothing is written where a link leads; put what it "
            f"leads to in its place, or name another {option}"
        )
    lock: Lock = FileLock(folder / _NAME)
    try:
        other = lock.take(this_command())
    except OSError as error:
        reason = f"{_NAME} {error.strerror}" if error.errno in _NO_FILE else error.strerror
        raise ConfigError(
            f"{option}: cannot write in {folder} ({reason}); allowed: a folder of yours"
        ) from error
    if other is not None:
        raise in_use(option, str(folder), other)
    _held.add(here)
    try:
        yield
    finally:
        _held.remove(here)
        lock.drop()


def this_command() -> str:
    """Return what runs where since when, without its options: they may hold secrets."""
    words = sys.orig_argv
    named = words[words.index("-m") + 1 :] if "-m" in words else sys.argv
    command = Path(next(iter(named), "python")).name
    since = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
    return f"{command} on {os.uname().nodename} since {since} (process {os.getpid()})"
