"""Where the time of a training goes."""

from __future__ import annotations

import time


class Meter:
    """Count seconds in training, in validation and in waiting for data."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._before = 0.0
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
