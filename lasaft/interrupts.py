"""Signals that ask to stop, where the exception that they raise would be lost or do harm."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ALL_SIGNALS = (*_SIGNALS, signal.SIGHUP)


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], None],
    signals: Sequence[signal.Signals] = _SIGNALS,
) -> Iterator[None]:
    """Let ``handler`` take these signals inside the ``with``, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, found in before.items():
            # None: a handler that was not set from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if found is None else found)


@contextmanager
def acknowledged(tell: Callable[[], object]) -> Iterator[None]:
    """Call ``tell`` as soon as a signal comes, also while native code lets no handler run.

    In a thread of its own, once. In another thread than the main one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)

    def follow() -> None:
        while number := os.read(read, 1)[0]:
            if number in _ALL_SIGNALS:
                tell()
                return

    thread = threading.Thread(target=follow, name="signals", daemon=True)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(write, b"\0")
        thread.join()
        os.close(read)
        os.close(write)


@contextmanager
def held() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP wait until the end of the ``with``, whoever takes them then.

    For native code that calls Python back: an exception that is raised there goes nowhere.
    """
    waiting: list[int] = []
    with handled(lambda number, frame: waiting.append(number), _ALL_SIGNALS):
        yield
    for number in waiting[:1]:
        signal.raise_signal(number)
