"""Writing beside the training: one piece of work at a time, in a thread of its own."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors

from lasaft.errors import StageError

# What a person has to mend; anything else may be better after Ray has started training again.
_FAULTS_OF_THE_FOLDER = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG,
}  # fmt: skip


class BackgroundWriter:
    """Does writing in the background; use as a context manager, whose end awaits the last piece.

    What goes wrong is raised in the thread that trains: by :meth:`check`, by the next
    :meth:`submit`, or at the end.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a piece of work is being done."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, work: Callable[[], None]) -> None:
        """Start ``work`` once the piece before it is done."""
        self._join()
        self.check()
        self._thread = threading.Thread(target=self._run, args=(work,), name="saver", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what has gone wrong, if anything."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that trains
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._join()
        if kind is None:
            self.check()


@contextmanager
def folder_faults(folder: Path) -> Iterator[None]:
    """Turn a full or closed disk into a StageError that names the file, or ``folder``."""
    kept = "what has been saved is kept, and the same command goes on from it"
    try:
        yield
    except safetensors.SafetensorError as error:  # its form of an OSError while writing
        raise StageError(f"training: {folder}: {error}; {kept}") from error
    except OSError as error:
        if error.errno not in _FAULTS_OF_THE_FOLDER:
            raise
        where = error.filename or folder
        raise StageError(f"training: {where}: {error.strerror}; {kept}") from error
