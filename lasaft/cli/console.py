"""Output of the ``lasaft`` command (tables, JSON, a line a fault) and its ending by signals."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lasaft.errors import ConfigError, LasaftError
from lasaft.interrupts import acknowledged
from lasaft.output import shown, stopping, tell


class Stopped(KeyboardInterrupt):
    """The process was asked to end by the signal with this ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that temporary files are removed.

    A signal that somebody ignores (nohup) or handles already stays as it is.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [
            number
            for number in (signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is signal.SIG_DFL
        ]
    for number in ours:
        signal.signal(number, stop)
    try:
        with acknowledged(stopping):
            yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def print_json(value: Any) -> None:
    """Print a result for programs."""
    # JSON has no NaN: a median without frames is null.
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a result for people, in columns; nothing if there are no rows."""
    if not rows:
        return
    # A file name need not be Unicode, or have all its characters in the terminal's encoding.
    code = sys.stdout.encoding or "utf-8"
    lines = [
        [shown(cell).encode(code, "backslashreplace").decode(code) for cell in row]
        for row in (header, *rows)
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def listed(error: LasaftError) -> str:
    """Return what an error says, each problem with a command line on a line of its own."""
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        lines = "".join(f"\n  {problem}" for problem in error.problems)
        return f"{len(error.problems)} errors:{lines}"
    return str(error)


def complain(text: str) -> None:
    """Tell the user what is wrong with the command."""
    tell(text, "lasaft: ")


def outcome(total: int, failed: int, what: str) -> int:
    """Say what of a work in many parts failed, and return the exit code."""
    if failed:
        complain(f"{total - failed} of {total} {what}, {failed} failed (named above)")
    return 1 if failed else 0


def text_of(error: Exception) -> str:
    """Return what an error says, without Python's way of putting it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
