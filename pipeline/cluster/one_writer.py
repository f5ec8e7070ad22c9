"""One command at a time writes to a run, also where the run lies in an object store."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lasaft.errors import LasaftError, StageError, refuse
from pipeline.cluster.job_log import kept_log
from pipeline.cluster.locks import alone, in_use, is_held, this_command
from pipeline.cluster.progress import say
from pipeline.cluster.run_store import LARGE, TRAINED, RunStore, guards
from pipeline.cluster.store import RemoteFile, RemoteFolder
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder, misplaced

_RECORDS = ("tracking", "database", "artifacts")
_BEAT_SECONDS = 5.0
_STALE_SECONDS = 20.0
_SETTLE_SECONDS = 1.0


@contextmanager
def alone_in_run(config: RunConfig, *parts: str) -> Iterator[None]:
    """Be the only command that writes to a run; a thread may say so again inside of it.

    Of a run in an object store, the copy here is made current before, and what was made of it
    goes to the store after; what nodes make, they take there themselves.

    Args:
        parts: what is written besides records for MLflow, by the names of :class:`RunFolder`
            (default: everything). The rest may be links: it is read at most.

    Raises:
        ConfigError: the folder cannot be written, or something in it is not what it should be.
        DataError: the store does not answer or refuses.
        StageError: another command writes there.
    """
    folder = RunFolder.of(config)
    again = is_held(folder.root)
    written = [getattr(folder, part) for part in (*parts, *_RECORDS)] if parts else folder.made
    written = [*written, *folder.tracking.glob("*")]
    if folder.training in written:
        written += folder.training.glob("*")
    with alone(folder.root, "output_dir", written):
        refuse(() if again else misplaced(config))
        if folder.address is None or again:
            yield
            return
        store = RunStore(folder)
        with _leased(store) as remote, kept_log(remote):
            store.pull(but=LARGE)
            try:
                yield
            finally:
                store.push(but=(*LARGE, *TRAINED))


@contextmanager
def _leased(store: RunStore) -> Iterator[RemoteFolder]:
    assert store.remote is not None
    lease = Lease(store.remote)
    other = lease.take(this_command())
    if other is not None:
        raise in_use("output_dir", str(store.remote), other)
    guards[store.remote.address] = lease.require
    try:
        yield store.remote
    finally:
        del guards[store.remote.address]
        lease.drop()


class Lease:
    """The right to write to a folder of an object store: an object that names its owner.

    The owner changes the object every few seconds. One that has not changed for a while is that
    of a command which has died, and is taken over. Stores that pyarrow opens have no common way
    to write on a condition, so who takes it looks again after a moment whether it still has it.
    """

    def __init__(self, remote: RemoteFolder) -> None:
        self._file, self._place = remote / ".lease.json", str(remote)
        self._own: dict[str, Any] = {}
        self._end, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def take(self, owner: str) -> str | None:
        """Become its owner and return None, or return who that is already, in words."""
        found = owner_of(self._file)
        if found is not None and not is_dead(found):
            say(
                f"output_dir: {self._place} was in use by {found.get('owner')}; looking for "
                f"{_STALE_SECONDS:.0f} s whether that still runs"
            )
            end = time.monotonic() + _STALE_SECONDS
            while (now := owner_of(self._file)) == found and time.monotonic() < end:
                time.sleep(1)
            if now is not None and now != found:
                return str(now.get("owner"))
        self._own = whoami() | {"owner": owner, "beat": 0}
        self._write()
        time.sleep(_SETTLE_SECONDS)
        now = owner_of(self._file)
        if now != self._own:
            return str(now.get("owner")) if now is not None else "one that has just ended"
        self._thread.start()
        return None

    def drop(self) -> None:
        """Leave it to others; only its owner may."""
        self._end.set()
        self._thread.join()
        with suppress(LasaftError):  # without an answer of the store it is left to be stale
            found = owner_of(self._file)
            if found is not None and found.get("id") == self._own["id"]:
                self._file.delete()

    def require(self) -> None:
        """Go on only if nobody else has taken it over.

        Raises:
            StageError: another command has, because this one stood still.
        """
        if self._lost:
            raise StageError(
                f"output_dir: {self._place}: this command stood still for so long that another "
                "one has taken the run over; nothing is lost"
            )

    def _beat(self) -> None:
        while not self._end.wait(_BEAT_SECONDS):
            with suppress(LasaftError):  # the store does not answer; it may again
                found = owner_of(self._file)
                self._lost = found is not None and found.get("id") != self._own["id"]
                if self._lost:
                    return
                self._own["beat"] += 1
                self._write()

    def _write(self) -> None:
        self._file.write_bytes(json.dumps(self._own).encode())


def whoami() -> dict[str, Any]:
    """Return what tells this process from all others, on all machines."""
    return {"host": os.uname().nodename, "process": os.getpid(), "id": uuid.uuid4().hex}


def owner_of(file: RemoteFile) -> dict[str, Any] | None:
    """Return who an object says its owner is, None where there is none or it says nothing."""
    try:
        found = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_dead(owner: dict[str, Any]) -> bool:
    """Return whether a process that :func:`whoami` named was of this machine, and is no more."""
    here = owner.get("host") == os.uname().nodename
    return here and not Path(f"/proc/{owner.get('process')}").exists()
