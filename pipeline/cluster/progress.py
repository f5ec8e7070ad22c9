"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

from lasaft.output import is_quiet
from pipeline.config.folders import as_given

_SECONDS_BETWEEN_LINES = 10.0


def say(text: str, stream: TextIO | None = None) -> None:
    """Show a line that stays, above the bars that are there, unless it shall be quiet."""
    if is_quiet():
        return
    tqdm.write(as_given(text), file=stream or sys.stderr)
    (stream or sys.stderr).flush()


class Progress:
    """Count ``unit``s up to ``total``, ``done`` of them before; use as a context manager."""

    def __init__(
        self, title: str, total: int, unit: str, *, done: int = 0, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._title, self._total, self._unit, self._done = title, total, unit, done
        self._start, self._first, self._last_line = time.monotonic(), done, 0.0
        self._bar = None
        if self._stream.isatty() and not is_quiet():
            self._bar = tqdm(
                total=total, initial=done, desc=title, unit=unit, file=self._stream,
                dynamic_ncols=True, leave=True,
            )  # fmt: skip

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more units; ``note`` is shown beside the count."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if self._done >= self._total or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(self._line(now, note), self._stream)

    def say(self, text: str) -> None:
        """Show a line of its own, which stays."""
        say(text, self._stream)

    def _line(self, now: float, note: str) -> str:
        elapsed = now - self._start
        fresh = self._done - self._first
        left = (self._total - self._done) * elapsed / fresh if fresh > 0 else 0.0
        text = f"{self._title}: {self._done}/{self._total} {self._unit}"
        text += f", {elapsed:.0f} s" + (f", {left:.0f} s left" if left >= 1 else "")
        return f"{text}  {note}".rstrip()

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
