"""What every job does around its stage: parse, work, show the result, end with an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any, TypeVar

from jobs.cli.command import Command
from lasaft.cli.console import listed
from lasaft.errors import ConfigError, LasaftError
from lasaft.files import AWAY
from lasaft.interrupts import acknowledged
from lasaft.output import (
    Colour,
    be_quiet,
    coloured,
    keep_output,
    say,
    shown,
    shown_lines,
    stopping,
    tell,
)
from pipeline.cluster import interrupts
from pipeline.cluster.connection import prepare_environment
from pipeline.cluster.job_log import finish_log
from pipeline.config.folders import RunFolder, as_given

AnyCommand = TypeVar("AnyCommand", bound=Command)

EXIT_FAILED = 1
# Faults of the machine that a person mends; their text names the file.
_OUTSIDE = AWAY | {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.EEXIST,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENXIO, errno.ELOOP,
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a job ends with: ``text`` for people, ``data`` for programs (``--json``)."""

    text: str
    data: dict[str, Any]
    exit_code: int = 0


def run_job(
    name: str,
    argv: Sequence[str] | None,
    parse: Callable[[Sequence[str]], AnyCommand],
    work: Callable[[AnyCommand], Result],
) -> int:
    """Run one job and return its exit code: 0 all well, 1 something failed, 2 wrong usage.

    Ctrl-C ends with 130, SIGTERM with 143, both resumable.

    Args:
        name: the job's name, for messages.
        argv: the words of the command line (None: this process's own).
        parse: turns them into a command.
        work: does what the command says.
    """
    keep_output()
    again = ["the same command"]
    with interrupts.watched():
        try:
            with acknowledged(stopping):
                return _run(name, argv, parse, work, again)
        except KeyboardInterrupt:
            return _interrupted(again[-1])
        except Exception:
            # What fails because of Ctrl-C, in this process or in a worker, is no failure.
            if interrupts.received() is None:
                raise
            return _interrupted(again[-1])
        finally:
            finish_log()
            be_quiet(False)


def _run(
    name: str,
    argv: Sequence[str] | None,
    parse: Callable[[Sequence[str]], AnyCommand],
    work: Callable[[AnyCommand], Result],
    again: list[str],
) -> int:
    try:
        command = parse(sys.argv[1:] if argv is None else argv)
        if command.help is not None:
            _write(command.help)
            return 0
        again.append(command.again)
        prepare_environment(command.config.cluster)
        say(as_given(f"{name}: in {RunFolder.of(command.config).shown} ..."))
        if not command.json:
            command = replace(command, show=partial(_show, sys.stdout))
        # Ray and others print what they have to say; standard output is for the result alone.
        with contextlib.redirect_stdout(sys.stderr):
            result = work(command)
        _write(json.dumps(result.data) + "\n" if command.json else result.text.rstrip() + "\n")
        return result.exit_code
    except LasaftError as error:
        interrupts.raise_if_received()
        _complain(_message(error), f"{name}: ")
        return error.exit_code
    except OSError as error:
        interrupts.raise_if_received()
        if error.errno not in _OUTSIDE:
            raise
        where = "" if error.filename is None else f": {error.filename}"
        hint = "; its file system does not answer as it should" if error.errno in AWAY else ""
        _complain(f"error: {error.strerror}{where}{hint}", f"{name}: ")
        return EXIT_FAILED


def _interrupted(again: str) -> int:
    _complain(f"interrupted; {again} goes on from here")
    return 128 + (interrupts.received() or signal.SIGINT)


def _message(error: LasaftError) -> str:
    if not isinstance(error, ConfigError):
        # An error that crossed from a Ray task carries the original as its cause.
        cause = getattr(error, "cause", None)
        return f"error: {cause if isinstance(cause, LasaftError) else error}"
    return f"{'error: ' if len(error.problems) == 1 else ''}{listed(error)}"


def _write(text: str) -> None:
    sys.stdout.write(shown_lines(text))
    sys.stdout.flush()


def _show(stream: IO[str], text: str, colour: Colour) -> None:
    stream.write("".join(coloured(shown(line), colour, stream) + "\n" for line in text.split("\n")))
    stream.flush()


def _complain(text: str, head: str = "") -> None:
    tell(as_given(text), head)
