"""Which attempts at a task take far longer than the finished tasks say they should."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Patience:
    """When an attempt counts as stuck, and how often a task is begun."""

    factor: float = 5.0  # how many times longer than its size predicts a task may run
    least_seconds: float = 60.0  # no attempt is stuck before this
    finished: int = 2  # tasks that must be done before their median says how long one takes
    attempts: int = 3  # how often a task is begun before it counts as failed


@dataclass
class _Task:
    size: float
    begun: int = 0
    attempts: dict[Hashable, float | None] = field(default_factory=dict)  # when each started


Step = Literal["begin", "drop", "give up"]


class Stopwatch:
    """Times attempts at tasks and says what to do about late ones; knows nothing of Ray.

    Args:
        sizes: how much work each task is, in any unit: time is expected to follow it.
        clock: in seconds.
    """

    def __init__(
        self,
        sizes: Sequence[float],
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks = [_Task(size) for size in sizes]
        self._patience, self._clock = patience, clock
        self._rates: list[float] = []

    def begun(self, index: int, attempt: Hashable) -> None:
        """Note that an attempt at a task waits for its place."""
        self._tasks[index].begun += 1
        self._tasks[index].attempts[attempt] = None

    def started(self, index: int, attempt: Hashable) -> None:
        """Note that an attempt runs now."""
        self._tasks[index].attempts[attempt] = self._clock()

    def has_started(self, index: int, attempt: Hashable) -> bool:
        """Return whether an attempt has its place."""
        return self._tasks[index].attempts[attempt] is not None

    def dropped(self, index: int, attempt: Hashable) -> list[Hashable]:
        """Forget an attempt that failed or was ended; return those that are left."""
        attempts = self._tasks[index].attempts
        del attempts[attempt]
        return list(attempts)

    def finished(self, index: int, attempt: Hashable) -> list[Hashable]:
        """Note that a task is done; return its other attempts, which nobody needs."""
        task = self._tasks[index]
        start = task.attempts.pop(attempt)
        if start is not None:
            self._rates.append((self._clock() - start) / task.size)
        others = list(task.attempts)
        task.attempts.clear()
        return others

    def limit_seconds(self, index: int) -> float | None:
        """Return how long an attempt may run; None while too few tasks are done to know."""
        if len(self._rates) < self._patience.finished:
            return None
        usual = statistics.median(self._rates) * self._tasks[index].size
        return max(self._patience.least_seconds, self._patience.factor * usual)

    def due(self) -> list[tuple[int, Step, Hashable]]:
        """Return what late tasks need: (task, step, attempt).

        ``begin`` another attempt beside the late one; ``drop`` the late one, because the other
        has waited as long again for a place; ``give up`` after the last attempt.
        """
        steps: list[tuple[int, Step, Hashable]] = []
        for index, task in enumerate(self._tasks):
            limit = self.limit_seconds(index)
            if not task.attempts or limit is None:
                continue
            (oldest, first), *_ = task.attempts.items()
            newest, last = list(task.attempts.items())[-1]
            if last is None:
                if first is not None and self._clock() - first > 2 * limit:
                    steps.append((index, "drop", oldest))
            elif self._clock() - last > limit:
                again = task.begun < self._patience.attempts
                steps.append((index, "begin" if again else "give up", newest))
        return steps
