"""One command at a time writes to a run, also where the run lies in an object store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lasaft.errors import LasaftError, StageError, refuse
from pipeline.cluster.claims import Claim, is_dead, whoami
from pipeline.cluster.job_log import kept_log
from pipeline.cluster.locks import alone, in_use, is_held, this_command
from pipeline.cluster.progress import say
from pipeline.cluster.run_store import LARGE, TRAINED, RunStore, guards
from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder, misplaced

_RECORDS = ("tracking", "database", "artifacts")
_BEAT_SECONDS = 5.0
_STALE_SECONDS = 20.0


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
    of a command which has died, and is taken over.
    """

    def __init__(self, remote: RemoteFolder) -> None:
        self._claim, self._place = Claim(remote, ".lease.json"), str(remote)
        self._own: dict[str, Any] = {}
        self._end, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def take(self, owner: str) -> str | None:
        """Become its owner and return None, or return who that is already, in words."""
        found = self._claim.owner()
        if found is not None and not is_dead(found):
            say(
                f"output_dir: {self._place} was in use by {found.get('owner')}; looking for "
                f"{_STALE_SECONDS:.0f} s whether that still runs"
            )
            end = time.monotonic() + _STALE_SECONDS
            while (now := self._claim.owner()) == found and time.monotonic() < end:
                time.sleep(1)
            if now is not None and now != found:
                return str(now.get("owner"))
        self._own = whoami() | {"owner": owner, "beat": 0}
        if not self._claim.take(self._own):
            now = self._claim.owner()
            return str(now.get("owner")) if now is not None else "one that has just ended"
        self._thread.start()
        return None

    def drop(self) -> None:
        """Leave it to others; only its owner may."""
        self._end.set()
        self._thread.join()
        with suppress(LasaftError):  # without an answer of the store it is left to be stale
            self._claim.drop(self._own)

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
        while not self._end.wait(_BEAT_SECONDS) and not self._lost:
            self._own["beat"] += 1
            with suppress(LasaftError):  # the store does not answer; it may again
                self._lost = not self._claim.keep(self._own)
