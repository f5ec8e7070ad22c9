"""The budget of a search: epochs, hours, GPU hours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from lasaft.errors import StageError
from lasaft.files import atomic_write_json, read_json
from pipeline.cluster.connection import living_nodes
from pipeline.config.search import SearchConfig
from pipeline.search.trials import Trial

# How often the Ray node of this process is looked up.
_NODE_SECONDS = 5.0


def _seconds(file: Path) -> float:
    return read_json(file, {"seconds"}, "remove it: the time so far is not counted then")["seconds"]


class Budget(tune.Stopper):
    """Ends the search when its epochs, hours or GPU hours are used up.

    An epoch begins only if ``total_epochs`` has room for it beside those that are being trained, so
    the limit is met exactly.

    Args:
        search: the limits.
        file: keeps the search's seconds over interruptions.
        gpus: GPUs of a trial.
        trials: all trials so far.
    """

    def __init__(
        self, search: SearchConfig, file: Path, gpus: float, trials: Sequence[Trial]
    ) -> None:
        self._search, self._file, self._gpus = search, file, gpus
        self._epochs = {trial.name: trial.epochs for trial in trials}
        self._trained = {trial.name: trial.seconds for trial in trials}
        self._running: dict[str, str] = {}
        self._held: set[str] = set()
        self._before = _seconds(file) if file.exists() else 0.0
        self._start, self._written, self._node_seen = time.monotonic(), 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time of the search, over all interruptions."""
        return self._before + time.monotonic() - self._start

    @property
    def used_up(self) -> str:
        """Which limit is reached, in words; empty while there is some left."""
        search, epochs = self._search, sum(self._epochs.values())
        if search.total_epochs is not None and epochs >= search.total_epochs:
            return f"total_epochs {search.total_epochs}"
        if search.max_hours is not None and self.seconds >= 3600 * search.max_hours:
            return f"max_hours {search.max_hours:g}"
        hours = self._gpus * sum(self._trained.values()) / 3600
        if search.max_gpu_hours is not None and hours >= search.max_gpu_hours:
            return f"max_gpu_hours {search.max_gpu_hours:g}"
        return ""

    def begin(self, trial_id: str, name: str) -> None:
        """Count the trial ``name``, which Tune knows as ``trial_id``, as training."""
        self._running[trial_id] = name
        self._held.discard(name)

    def has_room(self) -> bool:
        """Return whether another trial may begin an epoch."""
        total = self._search.total_epochs
        return total is None or sum(self._epochs.values()) + len(self._running) < total

    def count(self, name: str, epochs: int, seconds: float) -> None:
        """Set the epochs that a trial has done, and the seconds that they took."""
        self._epochs[name], self._trained[name] = epochs, seconds

    def end(self, name: str) -> None:
        """Count a trial as training no more."""
        self._running = {key: value for key, value in self._running.items() if value != name}

    def holds(self, name: str) -> bool:
        """Return whether a trial was ended only because no epochs were left."""
        return name in self._held

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return whether the trial that gave ``result`` has to end: its next epoch has no room."""
        name, total = self._running.get(trial_id), self._search.total_epochs
        if name is None or total is None or "epoch" not in result:
            return False
        done = sum((self._epochs | {name: result["epoch"]}).values())
        if done + len(self._running) <= total:
            return False
        self._held.add(name)
        return True

    def stop_all(self) -> bool:
        """Return whether a limit is reached; Tune calls this at each of its steps.

        Raises:
            StageError: this process's Ray node has ended, for which Tune would wait for ever.
        """
        now = time.monotonic()
        if now - self._written > 1.0:
            self.save()
        if now - self._node_seen > _NODE_SECONDS:
            self._node_seen = now
            _require_own_node()
        return bool(self.used_up)

    def save(self) -> None:
        """Write the search's seconds to the file."""
        self._written = time.monotonic()
        atomic_write_json(self._file, {"seconds": round(self.seconds, 1)})


def _require_own_node() -> None:
    mine = ray.get_runtime_context().get_node_id()
    if all(node["NodeID"] != mine for node in living_nodes()):
        raise StageError(
            "search: the Ray node of this command has ended (its raylet was killed or ran out of "
            "memory); what the trials have saved is kept, and the same command goes on from there"
        )
