"""The right to write to the folder of a training, which one process has at a time."""

from __future__ import annotations

import os
import time
from typing import IO, Protocol, Self

from lasaft.errors import StageError
from lasaft.files import atomic_write_bytes, open_own, read_steadily
from pipeline.cluster import locks
from pipeline.cluster.claims import Claim, is_dead, owner_of, whoami
from pipeline.cluster.run_store import RunStore
from pipeline.cluster.store import RemoteFolder
from pipeline.config.folders import RunFolder

# Ray ends the workers of a killed command, or of a node that it has lost, within some 5 seconds.
_PREDECESSOR_SECONDS = 30.0
_WRITER = "training/.writer.json"  # in an object store: who has the right


class Right(Protocol):
    """Held inside a ``with``, which begins once no process of an earlier attempt writes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def require(self) -> None:
        """Raise where this process has been shut out.

        Raises:
            StageError: the run is another process's now.
        """


def right_to_write(folder: RunFolder, store: RunStore) -> Right:
    """Return the right to write to the training of a run, wherever it is kept."""
    return RightToWrite(folder) if store.remote is None else RightInStore(store.remote)


def trains_here(store: RunStore) -> bool:
    """Return whether a process of this machine trains: what is here of the run is its to change.

    Raises:
        DataError: the store does not answer or refuses.
    """
    owner = None if store.remote is None else owner_of(store.remote / _WRITER)
    if owner is None or is_dead(owner):
        return False
    return owner.get("host") == os.uname().nodename


class RightInStore:
    """The right to the training of a run in an object store: an object names who has it."""

    def __init__(self, remote: RemoteFolder) -> None:
        self._claim, self._place = Claim(remote, _WRITER), str(remote)
        self._own = whoami()

    def __enter__(self) -> Self:
        end = time.monotonic() + _PREDECESSOR_SECONDS
        while (owner := self._claim.owner()) and not is_dead(owner) and time.monotonic() < end:
            time.sleep(1)
        if not self._claim.take(self._own):
            raise _shut_out(self._place)
        return self

    def __exit__(self, *_: object) -> None:
        self._claim.drop(self._own)

    def require(self) -> None:
        """Raise where this process has been shut out."""
        if self._claim.owner() != self._own:
            raise _shut_out(self._place)


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
        self._file = open_own(self._path, "a")
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
            atomic_write_bytes(self._journal, read_steadily(self._journal))
        fresh = self._path.with_suffix(".new")
        file = open_own(fresh, "a")
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
            raise _shut_out(str(self._path.parent))


def _shut_out(place: str) -> StageError:
    return StageError(
        f"{place}: this process stood still for so long that another one has taken the training "
        "over; nothing is lost"
    )
