"""What a command says, kept beside its run in the object store: its machine may soon be gone."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lasaft.errors import LasaftError
from pipeline.cluster.progress import say
from pipeline.cluster.store import RemoteFolder

_EVERY_SECONDS = 30.0
_ERRORS = Path("/proc/self/fd/2")
_logs: list[_Log] = []  # of this process's command


@contextmanager
def kept_log(remote: RemoteFolder) -> Iterator[None]:
    """Keep the file to which standard error goes, as that of each Ray job does, under ``logs``.

    It goes to the store twice a minute, so that of a command that is killed little is missing.
    """
    if not (_ERRORS.exists() and stat.S_ISREG(os.fstat(2).st_mode)):
        yield
        return
    log = _Log(remote)
    _logs[:] = [log]
    thread = threading.Thread(target=log.follow, name="log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        log.end.set()
        thread.join()


def finish_log() -> None:
    """Add this command's last words, and the error that ends it."""
    for log in _logs:
        try:
            log.put(traceback.format_exc() if sys.exception() is not None else "")
        except LasaftError as error:
            say(f"the log of this command is not in the store as a whole: {error}")
    _logs.clear()


class _Log:
    def __init__(self, remote: RemoteFolder) -> None:
        now = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        self._file = remote / f"logs/{now}_{os.uname().nodename}_{os.getpid()}.log"
        self._bytes = 0
        self.end = threading.Event()

    def follow(self) -> None:
        """Put what is new there again and again, until the end."""
        while True:
            with suppress(LasaftError):  # the store does not answer; it may again
                self.put()
            if self.end.wait(_EVERY_SECONDS):
                return

    def put(self, last: str = "") -> None:
        """Put all that was said there, if there is more than before."""
        data = _ERRORS.read_bytes() + last.encode()
        if len(data) != self._bytes:
            self._file.write_bytes(data)
            self._bytes = len(data)
