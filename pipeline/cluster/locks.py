"""Locks on files: the system drops them when a process ends, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def taken(file: IO[str] | IO[bytes], kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock of an open file, if nobody else holds it, and say whether it was taken.

    Args:
        file: holds the lock until it is closed.
        kind: ``fcntl.LOCK_EX``, or ``fcntl.LOCK_SH`` beside other shared ones.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(file: IO[str] | IO[bytes]) -> None:
    """Take the lock of an open file, which holds it until it is closed; wait while others do."""
    fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def alone(path: Path, otherwise: Exception) -> Iterator[None]:
    """Hold the lock of the file ``path``, which is made where it is missing.

    Raises:
        Exception: ``otherwise``, where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not taken(file):
            raise otherwise
        yield
