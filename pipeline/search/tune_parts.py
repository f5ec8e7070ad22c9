"""Ray Tune's parts for our trials: who comes next, who ends early, when the budget is used up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from pipeline.config.search import OBJECTIVES, SearchConfig
from pipeline.search.trials import Trial, best_epoch

_NEVER = 10**9


class Queue(Searcher):
    """Gives Tune one trial after the other: those that wait on disk, then new ones.

    Args:
        waiting: trials that were begun, or planned and never begun.
        more: plans the next new trial; None when there is none.
        payload: what a trial's process is told.
        begun: called with Tune's id and the trial before it is handed out.
        has_room: whether another trial may begin now.
    """

    def __init__(
        self,
        waiting: Sequence[Trial],
        more: Callable[[], Trial | None],
        payload: Callable[[Trial], dict[str, Any]],
        begun: Callable[[str, Trial], None],
        has_room: Callable[[], bool],
    ) -> None:
        super().__init__(metric="score", mode="max")
        self._waiting, self._more = list(waiting), more
        self._payload, self._begun, self._has_room = payload, begun, has_room

    def suggest(self, trial_id: str) -> Any:
        """Return what the next trial is told; None: not now, FINISHED: there is no more."""
        if not self._has_room():
            return None
        trial = self._waiting.pop(0) if self._waiting else self._more()
        if trial is None:
            return Searcher.FINISHED
        self._begun(trial_id, trial)
        return self._payload(trial)

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        """Do nothing: the files say how a trial ended."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune keeps a copy of itself on disk, which nobody reads."""
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


class _Nobody:
    """Tune's controller as a scheduler sees it before anything runs."""

    def get_live_trials(self) -> list[Any]:
        """Return no trial."""
        return []


class _Standing:
    """A trial of an earlier run, as a scheduler sees it."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def build_scheduler(search: SearchConfig, epochs: int) -> TrialScheduler:
    """Return Tune's scheduler for ``search``; trials have ``epochs`` epochs."""
    watched: dict[str, Any] = {"metric": "score"}
    watched["mode"] = "max" if OBJECTIVES[search.objectives[0]] else "min"
    match search.scheduler:
        case "asha":
            return ASHAScheduler(
                time_attr="epoch", max_t=max(epochs, search.grace_epochs),
                grace_period=search.grace_epochs, reduction_factor=search.reduction_factor,
                **watched,
            )  # fmt: skip
        case "median":
            # Never a pause: a trial that waits for others holds nothing that they could use.
            return _Median(
                time_attr="epoch", grace_period=search.grace_epochs, min_samples_required=2,
                min_time_slice=_NEVER, **watched,
            )  # fmt: skip
    return FIFOScheduler()


def replay(scheduler: TrialScheduler, trial: Trial, watched: str, trial_id: str) -> None:
    """Tell ``scheduler`` the epochs that ``trial`` had before this run, under ``trial_id``."""
    if not isinstance(scheduler, ASHAScheduler | MedianStoppingRule):
        return
    standing: Any = _Standing(trial_id)
    nobody: Any = _Nobody()
    scheduler.on_trial_add(nobody, standing)
    for count in range(1, trial.epochs + 1):
        best = best_epoch(trial.curve[:count])
        score = None if best is None else getattr(best, watched)
        if score is not None:
            scheduler.on_trial_result(nobody, standing, {"epoch": count, "score": score})
