"""What Ray Tune is given: the trials in their order, and the scheduler that ends weak ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from pipeline.config.search import OBJECTIVES, SearchConfig
from pipeline.search.trials import Trial, score_of

_NEVER = 10**9


class Queue(Searcher):
    """Gives Tune one trial after the other: those that are planned, then new ones.

    Args:
        waiting: trials that are planned, begun or not.
        more: plans the next new trial; None when there is none.
        begin: called with Tune's id and the trial before it begins; gives its process's argument.
        has_room: whether another trial may begin now.
    """

    def __init__(
        self,
        waiting: Sequence[Trial],
        more: Callable[[], Trial | None],
        begin: Callable[[str, Trial], dict[str, Any]],
        has_room: Callable[[], bool],
    ) -> None:
        super().__init__(metric="score", mode="max")
        self._waiting, self._more = list(waiting), more
        self._begin, self._has_room = begin, has_room

    def suggest(self, trial_id: str) -> Any:
        """Return the argument of the next trial; None: not now, FINISHED: there are no more."""
        if not self._has_room():
            return None
        trial = self._waiting.pop(0) if self._waiting else self._more()
        return Searcher.FINISHED if trial is None else self._begin(trial_id, trial)

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        """Do nothing: the files say how a trial ended."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: the copy that Tune keeps on disk is never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the plans are on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the plans are on disk."""


class _Median(MedianStoppingRule):
    """Tune's rule, which fails after a trial that ended without a single report."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        """Count the last report of a trial, if there was one."""
        if "epoch" in result:
            super().on_trial_complete(tune_controller, trial, result)


@dataclass(eq=False)
class _EarlierTrial:
    """What a scheduler reads of a trial."""

    trial_id: str


def build_scheduler(search: SearchConfig, epochs: int) -> TrialScheduler:
    """Return Tune's scheduler for ``search``; trials have ``epochs`` epochs."""
    mode = "max" if OBJECTIVES[search.objectives[0]] else "min"
    common: dict[str, Any] = {"metric": "score", "mode": mode, "time_attr": "epoch"}
    common["grace_period"] = search.grace_epochs
    if search.scheduler == "asha":
        longest, factor = max(epochs, search.grace_epochs), search.reduction_factor
        return ASHAScheduler(max_t=longest, reduction_factor=factor, **common)
    if search.scheduler == "median":
        # No trial pauses for others: they could not use what it holds.
        return _Median(min_samples_required=2, min_time_slice=_NEVER, **common)
    return FIFOScheduler()


def replay(scheduler: TrialScheduler, trial: Trial, watched: str, trial_id: str) -> None:
    """Tell ``scheduler`` the epochs that ``trial`` had before this run, under ``trial_id``."""
    if not isinstance(scheduler, ASHAScheduler | MedianStoppingRule):
        return
    controller: Any = SimpleNamespace(get_live_trials=list)  # as before anything runs
    replayed: Any = _EarlierTrial(trial_id)
    scheduler.on_trial_add(controller, replayed)
    for count in range(1, trial.epochs + 1):
        score = score_of(trial.curve[:count], watched)
        if score is not None:
            scheduler.on_trial_result(controller, replayed, {"epoch": count, "score": score})
