"""A part of a benchmark in a process of its own, which may fail, die or take too long."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection

Row = tuple[str, str, str]  # what, how much, the goal


def within(seconds: float, part: Callable[[], Iterator[Row]]) -> tuple[list[Row], str]:
    """Return the rows that ``part`` yields in so many seconds, and what went wrong, if anything.

    The process is a copy of this one, which must not have used a GPU or several threads.
    """
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_rows, args=(part, theirs))
    process.start()
    theirs.close()
    assert process.pid is not None
    rows: list[Row] = []
    end = time.monotonic() + seconds
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            found = ours.recv()
            if not isinstance(found, tuple):
                process.join(2)
                return rows, found
            rows.append(found)
    except EOFError:
        return rows, "its process died"
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return rows, f"took more than {seconds:.0f} s"


def _send_rows(part: Callable[[], Iterator[Row]], into: Connection) -> None:
    os.setsid()  # what it starts ends with it
    fault = ""
    try:
        for row in part():
            into.send(row)
    except BaseException as error:  # noqa: BLE001  it is told by whoever waits
        traceback.print_exc()
        fault = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    into.send(fault)
