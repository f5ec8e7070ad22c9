"""A Ray cluster of one node on this machine, started by ``ray start`` as people do it."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.helpers import NEW_SHELL

_START_SECONDS = 120.0
_RAY = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port=0"]
_SMALL = ["--num-cpus=1", "--object-store-memory=100000000", "--include-dashboard=false"]


@dataclass(frozen=True)
class OwnCluster:
    """A cluster that wants a token.

    Args:
        settings: what the environment of a command says that finds it and is let in.
        command: the process that started all others.
    """

    settings: dict[str, str]
    command: subprocess.Popen[bytes]

    @property
    def folder(self) -> Path:
        """Where Ray's own files are."""
        return Path(self.settings["RAY_TMPDIR"])

    @property
    def address(self) -> str:
        """The address of the cluster."""
        return (self.folder / "ray" / "ray_current_cluster").read_text().strip()

    def signal_head(self, number: signal.Signals) -> None:
        """Send a signal to the process that answers at the address; the others live on."""
        self.command.send_signal(signal.SIGSTOP)  # it would end them
        (head,) = (
            process
            for process in psutil.Process(self.command.pid).children(recursive=True)
            if process.name() == "gcs_server"
        )
        head.send_signal(number)


@contextmanager
def own_cluster(*words: str, **settings: str) -> Iterator[OwnCluster]:
    """Have a cluster inside the ``with``; none of its processes is left after it.

    Args:
        words: more for ``ray start``.
        settings: more for its environment.
    """
    with tempfile.TemporaryDirectory(prefix="oc", dir="/tmp", ignore_cleanup_errors=True) as name:
        settings |= {"RAY_TMPDIR": name, "RAY_AUTH_MODE": "token"}
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
        words = (*_RAY, *_SMALL, "--include-log-monitor=false", "--disable-usage-stats", *words)
        log = Path(name) / "log.txt"
        with log.open("w") as out:
            started = subprocess.Popen(words, env=NEW_SHELL | settings, stdout=out, stderr=out)
        try:
            end = time.monotonic() + _START_SECONDS
            while "block forever" not in log.read_text():
                assert started.poll() is None, log.read_text()
                assert time.monotonic() < end, "Ray did not start"
                time.sleep(0.1)
            yield OwnCluster(settings, started)
        finally:
            processes = [psutil.Process(started.pid)]
            processes += processes[0].children(recursive=True)
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=30)
            started.wait()
