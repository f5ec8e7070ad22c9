"""Where the time of a training goes, and the line that a person sees of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

_SECONDS_BETWEEN_WRITES = 0.5


class Meter:
    """Count seconds in training, in validation and in waiting for data.

    Args:
        path: small JSON file with the newest numbers, for whoever shows progress.
        writes: whether this process writes it.
    """

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._path, self._writes = path, writes
        self._start = time.monotonic()
        self._before = 0.0
        self._last_write = -float("inf")
        self.step_seconds = 0.0
        self.wait_seconds = 0.0
        self.save_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Time since the training began, interruptions left out."""
        return self._before + time.monotonic() - self._start

    @property
    def wait_share(self) -> float:
        """Share of the time in training steps that was spent waiting for data."""
        return self.wait_seconds / self.step_seconds if self.step_seconds > 0 else 0.0

    @property
    def save_share(self) -> float:
        """Share of all time in which training stood still for a save."""
        return self.save_seconds / self.seconds if self.seconds > 0 else 0.0

    def show(self, values: dict[str, Any], *, force: bool = False) -> None:
        """Write ``values`` for whoever watches, at most twice a second."""
        now = time.monotonic()
        if not self._writes or (now - self._last_write < _SECONDS_BETWEEN_WRITES and not force):
            return
        self._last_write = now
        # No fsync: these numbers mean nothing after a crash.
        temporary = self._path.with_name(f".{self._path.name}.tmp-{os.getpid()}")
        temporary.write_text(json.dumps(values))
        temporary.replace(self._path)

    def state(self) -> dict[str, float]:
        """Return what :meth:`restore` needs."""
        return {
            "seconds": self.seconds, "step_seconds": self.step_seconds,
            "wait_seconds": self.wait_seconds, "save_seconds": self.save_seconds,
        }  # fmt: skip

    def restore(self, state: dict[str, float]) -> None:
        """Go on counting from ``state``."""
        self._before, self._start = state["seconds"], time.monotonic()
        self.step_seconds, self.wait_seconds = state["step_seconds"], state["wait_seconds"]
        self.save_seconds = state["save_seconds"]
