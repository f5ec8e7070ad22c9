"""The right to write to the folder of a training, which one process has at a time."""

from __future__ import annotations

import os
import time
from typing import IO, Self

from lasaft.errors import StageError
from lasaft.files import atomic_write_bytes
from pipeline.cluster import locks
from pipeline.config.folders import RunFolder

# Ray ends the workers of a killed command, or of a node that it has lost, within some 5 seconds.
_PREDECESSOR_SECONDS = 30.0


class RightToWrite:
    """Held inside a ``with``, which begins once no process of an earlier attempt writes any more.

    One that does not end, because its node stands still, is shut out: it has the lock of a file,
    and adds to a journal, that are not the folder's any more, and is told when it wants to save.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._journal, self._path = folder.metrics, folder.training / "writer.lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        end = time.monotonic() + _PREDECESSOR_SECONDS
        while not locks.taken(self._file):
            if time.monotonic() > end:
                self._file.close()
                self._file = self._shut_out()
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def _shut_out(self) -> IO[str]:
        """Return another lock's file, at which nobody else waits: each command trains alone."""
        if self._journal.exists():
            atomic_write_bytes(self._journal, self._journal.read_bytes())
        fresh = self._path.with_suffix(".new")
        file = fresh.open("w")
        fresh.replace(self._path)
        return file

    def require(self) -> None:
        """Raise where this process has been shut out.

        Raises:
            StageError: the folder is another process's now.
        """
        if self._file is None:
            return
        ours, theirs = os.fstat(self._file.fileno()), self._path.stat()
        if not os.path.samestat(ours, theirs):
            raise StageError(
                f"{self._path.parent}: this process stood still for so long that another one has "
                "taken the training over; nothing is lost"
            )
