"""Ctrl-C and SIGTERM: an orderly end of a job, also where one arrives at a bad moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_seen: list[int] = []


def _remember_and_raise(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let ``handler`` take both signals inside the ``with``, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, found in before.items():
            # None: a handler that was not set from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if found is None else found)


@contextmanager
def watched() -> Iterator[None]:
    """Raise KeyboardInterrupt for both signals inside the ``with``, and remember that one came."""
    if threading.current_thread() is threading.main_thread():
        _seen.clear()
    with _handled(_remember_and_raise):
        yield


@contextmanager
def held() -> Iterator[None]:
    """Let both signals wait until the end of the ``with``, whoever takes them in between."""
    waiting: list[int] = []
    with _handled(lambda number, frame: waiting.append(number)):
        yield
    for number in waiting[:1]:
        signal.raise_signal(number)


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
