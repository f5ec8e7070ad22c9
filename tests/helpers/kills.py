"""Commands that are killed at random moments, and given again until they have ended well."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.config import RunConfig
from tests.helpers.small_training import (
    WORKER,
    config_of,
    forget_step,
    step_of,
    wait_for,
    words_of,
)
from tests.helpers.training import differences

# After these the command has ended, and is given again.
ENDINGS = ("driver", "raylet", "interrupt")
UNDISTURBED = "undisturbed"
_LIMIT_SECONDS = 3600.0
RAYLET = r"^\S*raylet/raylet"
VALIDATOR = "^ray::Validator"
_NO_PROCESS = "(?!)"


@dataclass(frozen=True)
class Job:
    """A job that is killed; its functions take the name of a run, a folder in ``root``.

    Args:
        name: of the job's module.
        kinds: what is killed, and a pattern of its command line ("": the command itself).
        words: of the command of a run.
        progress: how far a run is.
        differences: names of what a run did not make as the undisturbed run did.
        forget: hides a run's progress until there is new progress.
        group: a pattern of processes that a kill of one of them ends all, sooner or later.
        pause_seconds: at most, between the moment that was drawn and the kill.
    """

    root: Path
    name: str
    kinds: dict[str, str]
    words: Callable[[str], list[str]]
    progress: Callable[[str], int]
    differences: Callable[[str], list[str]]
    forget: Callable[[str], object] = lambda _: None
    group: str = _NO_PROCESS
    kills_a_run: int = 1
    pause_seconds: float = 1.5

    def command(self, run: str) -> Command:
        """Give the command of a run."""
        return Command(self.name, self.words(run), self.root / "log.txt")


def training(root: Path, **options: Any) -> Job:
    """Trainings of two processes on this machine; progress is counted in steps."""

    def config(run: str) -> RunConfig:
        return config_of(root, run, **options)

    kinds = {"worker": WORKER, "workers": WORKER, "driver": "", "raylet": RAYLET, "interrupt": ""}
    return Job(
        root,
        "train",
        kinds | ({"validator": VALIDATOR} if options.get("validation") == "beside" else {}),
        words=lambda run: words_of(config(run)),
        progress=lambda run: step_of(config(run)),
        differences=lambda run: differences(config(run), config(UNDISTURBED)),
        forget=lambda run: forget_step(config(run)),
        group=WORKER,
        kills_a_run=10,
        pause_seconds=0.3,
    )


class Command:
    """The command of a job, which may be killed and given again."""

    def __init__(self, job: str, words: Sequence[str], log: Path) -> None:
        self._words, self._log = [sys.executable, "-m", f"jobs.{job}", *words], log
        self.start()

    def start(self) -> None:
        """Give the command."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self, *, well: bool = True) -> int:
        """Wait for the command's end, which must be a good one, or any; return its exit code."""
        code = self._process.wait(_LIMIT_SECONDS)
        assert code == 0 or not well, self._log.read_text("utf-8")[-2000:]
        return code

    def has_finished(self) -> bool:
        """Whether the command has come to its end, which must be a good one."""
        ended = self._process.poll() is not None
        if ended:
            self.finish()
        return ended

    def processes(self, pattern: str) -> list[psutil.Process]:
        """Return the processes below the command that ``pattern`` fits."""
        return [] if self.has_finished() else processes(self._process.pid, pattern)

    def kill(self, kind: str, found: list[psutil.Process], chance: random.Random) -> None:
        """Send SIGKILL to what ``kind`` names; Ctrl-C goes to all processes, as in a terminal."""
        if kind == "interrupt":
            os.killpg(self._process.pid, signal.SIGINT)
        elif kind == "driver":
            self._process.kill()
        else:
            for process in found if kind == "workers" else [chance.choice(found)]:
                process.kill()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def processes(driver: int, pattern: str) -> list[psutil.Process]:
    """Return those below the process ``driver`` whose command line ``pattern`` fits."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:  # it has just ended
            continue
        if re.search(pattern, " ".join(words)):
            found.append(process)
    return found


@dataclass(frozen=True)
class Kill:
    """One kill, how far the run was, and how long it took until it was as far again."""

    kind: str
    progress: int
    seconds: float


def disturb(
    job: Job, run: str, kinds: Sequence[str], total: int, chance: random.Random
) -> Iterator[Kill]:
    """Do a run with kills; yield each once the run is as far as before it.

    A run that has ended before its next kill yields no more. ``total`` is the progress of a whole
    run: in the last quarter a kill could come too late.
    """
    last = max(total * 3 // 4, len(kinds) + 1)
    moments = sorted(chance.sample(range(1, last), len(kinds)))
    with job.command(run) as command:

        def reach(moment: int) -> None:
            def is_there() -> bool:
                return job.progress(run) >= moment or command.has_finished()

            wait_for(is_there, f"progress {moment}", _LIMIT_SECONDS)

        for kind, moment in zip(kinds, moments, strict=True):
            reach(moment)
            time.sleep(chance.uniform(0, job.pause_seconds))
            pattern, found = job.kinds[kind], list[psutil.Process]()
            while pattern and not found and not command.has_finished():
                found = command.processes(pattern)
            if command.has_finished():
                return
            reached, began = job.progress(run), time.monotonic()
            all_end = kind in ENDINGS or pattern == job.group
            group = command.processes(job.group) if all_end else []
            command.kill(kind, found, chance)
            # Workers outlive the raylet by many seconds, in which they could reach the end of so
            # short a training.
            _, alive = psutil.wait_procs(group, chance.uniform(0, 1))
            for process in alive if kind in ENDINGS else ():
                process.kill()
            psutil.wait_procs(group, _LIMIT_SECONDS)
            job.forget(run)
            if kind in ENDINGS:
                code = command.finish(well=False)
                assert code == 130 or kind != "interrupt", f"Ctrl-C ended with {code}"
                command.start()
            reach(reached)
            yield Kill(kind, reached, time.monotonic() - began)
        command.finish()
