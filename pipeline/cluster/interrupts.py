"""Ctrl-C and SIGTERM: an orderly end of a job, also where one arrives at a bad moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lasaft.interrupts import handled

_seen: list[int] = []


def _remember_and_raise(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    raise KeyboardInterrupt


@contextmanager
def watched() -> Iterator[None]:
    """Raise KeyboardInterrupt for both signals inside the ``with``, and remember that one came."""
    if threading.current_thread() is threading.main_thread():
        _seen.clear()
    with handled(_remember_and_raise):
        yield


def received() -> int | None:
    """Return the first signal that came inside :func:`watched`, if one came.

    An exception alone does not tell: raised inside a destructor or a native callback it is lost,
    and the processes that share the terminal fail at the same time for the same reason.
    """
    return _seen[0] if _seen else None


def raise_if_received() -> None:
    """Go on only if no signal came; for loops that wait on other processes.

    Raises:
        KeyboardInterrupt: one came, but its exception was lost.
    """
    if _seen:
        raise KeyboardInterrupt
