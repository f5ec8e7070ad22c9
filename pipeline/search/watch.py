"""What happens around the trials while Tune runs them: endings on disk, progress, MLflow."""

from __future__ import annotations

import threading
from typing import Any

from ray.tune.progress_reporter import TrialProgressCallback

from lasaft.errors import StageError
from pipeline.cluster.progress import Progress
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.config.search import OBJECTIVES
from pipeline.search.budget import Budget
from pipeline.search.trials import Trial, TrialBook, mark_failed, mark_stopped, reason_of
from pipeline.tracking import Tracker, tracking_address


class Watch:
    """Follows the trials of one run of Tune; use as a context manager around it.

    Args:
        config: the search's settings.
        book: the trials on disk.
        budget: counts their epochs.
        total: how many trials there will be, None if nobody knows.
    """

    def __init__(
        self, config: RunConfig, book: TrialBook, budget: Budget, total: int | None
    ) -> None:
        self.config, self.book, self.budget = config, book, budget
        trials = book.all()
        ended = sum(trial.status not in ("waiting", "running") for trial in trials)
        self._progress = Progress(
            "search", max(total or 0, len(trials), ended + 1), "trials", done=ended
        )
        self._trackers: dict[str, Tracker] = {}
        self._closing: list[threading.Thread] = []
        self._scores: dict[str, float] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._trackers):
            self._close(self.book.read(name))
        for thread in self._closing:
            thread.join()
        self._progress.close()

    def callback(self) -> TrialProgressCallback:
        """Return Tune's view of this."""
        return _Hooks(self)

    def begun(self, name: str) -> None:
        """Take the start of a trial into account."""
        if name in self._trackers or not self.config.tracking.log:
            return
        trial = self.book.read(name)
        tracking = trial.config.tracking.model_copy(
            update={"run_id": trial.title, "tracking_uri": tracking_address(self.config)}
        )
        config = trial.config.model_copy(update={"tracking": tracking})
        folder = RunFolder.of(config)
        tracker = Tracker(config, folder, parent=RunFolder.of(self.config))
        tracker.__enter__()
        tracker.log_params()
        tracker.set_tags({"search.trial": name, "search.space": self.config.search.space or ""})
        tracker.follow(folder.metrics)
        self._trackers[name] = tracker

    def came(self, name: str, result: dict[str, Any]) -> None:
        """Take an epoch of a trial into account."""
        if "score" not in result:
            return
        self.budget.count(name, result["epoch"], result["seconds"])
        self._scores[name] = score = result["score"]
        self._progress.advance(0, self._note(f"trial {name} epoch {result['epoch']} {score:.4g}"))

    def died(self, name: str) -> None:
        """Say that the process of a trial has ended, and that another one goes on with it."""
        self._progress.say(f"search: the process of trial {name} ended; it goes on where it was")

    def ended(self, name: str, error: BaseException | str | None = None) -> None:
        """Write down how a trial has ended, where its own files do not say it."""
        self.budget.end(name)
        trial = self.book.read(name)
        if error is not None and trial.status not in ("done", "failed", "stopped"):
            text = error if isinstance(error, str) else reason_of(error)
            mark_failed(trial.folder, f"its process ended again and again: {text}")
        elif trial.status == "running" and not (self.budget.used_up or self.budget.holds(name)):
            watched = self.config.search.objectives[0]
            by = f"{self.config.search.scheduler}: {watched} {trial.figure(watched):.4g}"
            mark_stopped(trial.folder, f"{by} after {trial.epochs} epochs")
        trial = self.book.read(name)
        if trial.status in ("waiting", "running"):
            return
        self._close(trial)
        self._progress.advance(1, self._note(f"trial {name} {trial.status}"))

    def _note(self, text: str) -> str:
        watched = self.config.search.objectives[0]
        if not self._scores:
            return text
        best = max if OBJECTIVES[watched] else min
        return f"{text}, best {watched} so far {best(self._scores.values()):.4g}"

    def _close(self, trial: Trial) -> None:
        """End the trial's record in MLflow without waiting for it."""
        tracker = self._trackers.pop(trial.name, None)
        if tracker is None:
            return
        names = ("sdr", "val_loss", "parameters", "seconds")
        figures = {f"search/{name}": trial.figure(name) for name in names}
        tracker.log_metrics({name: value for name, value in figures.items() if value is not None})
        tracker.set_tags({"search.status": trial.status, "search.reason": trial.reason})
        failed = StageError(trial.reason) if trial.status == "failed" else None
        thread = threading.Thread(
            target=tracker.__exit__, args=(type(failed) if failed else None, failed, None)
        )
        thread.start()
        self._closing.append(thread)


class _Hooks(TrialProgressCallback):
    """Tune calls these; everything is in the payload's name.

    As Tune's own reporter, so that it has none beside this one: it would print a line about each
    trial that ends without a report.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune keeps a copy of itself on disk, which nobody reads."""
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial starts, or starts again."""
        self._watch.begun(trial.config["name"])

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """An epoch of a trial is done."""
        self._watch.came(trial.config["name"], result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial has ended by itself, by the scheduler or by the budget."""
        self._watch.ended(trial.config["name"])

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial's process has ended, and is started again."""
        self._watch.died(trial.config["name"])

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial's process has ended too often."""
        self._watch.ended(trial.config["name"], _error_of(trial))


def _error_of(trial: Any) -> BaseException | str:
    error = trial.get_error()
    cause = getattr(error, "cause", None) or error
    return cause if isinstance(cause, BaseException) else "no reason was given"
