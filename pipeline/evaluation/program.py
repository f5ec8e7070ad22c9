"""Any program as a separator: run on one song in a folder of its own, within bounds."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import numpy as np
import soundfile

from lasaft.errors import DataError

_LOOK_SECONDS = 0.5
_SAID, _SHOWN = 500, 8  # characters of what it said last, and files, that an error quotes
# Linux ends it where its task is ended without a word, as Ray does at Ctrl-C.
_ENDS_WITH_ITS_TASK = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Program:
    """A command with ``{song}`` and ``{folder}`` in it, and what a song may cost.

    The song is a wav file of float32 samples; into the folder it writes ``<source>.wav`` (or flac,
    mp3), there or in folders below.
    """

    command: str
    minutes: float
    memory_bytes: float

    @property
    def name(self) -> str:
        """What it is called where nothing else is said."""
        return Path(shlex.split(self.command)[0]).name

    @contextmanager
    def separated(
        self, name: str, mixture: np.ndarray, rate: int, sources: Sequence[str]
    ) -> Iterator[Path]:
        """Yield the folder with the estimates that it made of a song.

        Args:
            name: of the song's file, without its ending.
            mixture: [channel, sample].
            rate: in Hz.
            sources: whose estimates must be there.

        Raises:
            DataError: it could not be started, failed, took too long or too much memory, or left
                no estimates.
        """
        with TemporaryDirectory(prefix="lasaft-") as place:
            song, folder, log = Path(place, f"{name}.wav"), Path(place, "out"), Path(place, "log")
            folder.mkdir()
            soundfile.write(song, mixture.T, rate, subtype="FLOAT")
            words = [
                word.replace("{song}", str(song)).replace("{folder}", str(folder))
                for word in shlex.split(self.command)
            ]
            with log.open("wb") as said:
                reason = self._run(words, said)
            if reason is None:
                found = {file.parent for s in sources for file in folder.rglob(f"{escape(s)}.*")}
                if len(found) == 1:
                    yield found.pop()
                    return
                there = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*"))
                reason = (
                    f"left no {', '.join(f'{s}.wav' for s in sources)} in one folder below "
                    f"{{folder}}; found: {', '.join(there[:_SHOWN]) or 'nothing'}"
                )
            last = " ".join(log.read_text(errors="replace").split())[-_SAID:]
            raise DataError(f"separator {self.name!r}: {reason}{last and f'; it said: {last}'}")

    def _run(self, words: Sequence[str], said: IO[bytes]) -> str | None:
        """Run the command and return what went wrong, if something did."""
        if shutil.which(words[0]) is None:
            return "is no program that is found on PATH of this node"
        process = subprocess.Popen(
            [sys.executable, "-c", _ENDS_WITH_ITS_TASK, *words],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + 60 * self.minutes
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(_LOOK_SECONDS)
                    return f"failed with exit code {code}" if code else None
                if time.monotonic() > end:
                    return f"took longer than separator_minutes {self.minutes:g}"
                if _memory_of(process.pid) > self.memory_bytes:
                    return f"took more than task_memory {self.memory_bytes / 1e9:g} GB"
        finally:
            _end(process)


def _memory_of(group: int) -> int:
    """Return the bytes that all processes of a group hold in memory; 0 where none can be seen."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (OSError, UnicodeDecodeError):
            continue  # it has ended meanwhile
        if int(fields[2]) == group:
            total += int(fields[21]) * _PAGE
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a program, and all that it has started."""
    with suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
