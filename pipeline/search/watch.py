"""What follows from Tune's events: how trials ended on disk, progress, records in MLflow."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from ray.tune.progress_reporter import TrialProgressCallback

from lasaft.card import NOT_STATED
from lasaft.errors import DataError, StageError
from pipeline.cluster.connection import resources_of_nodes
from pipeline.cluster.progress import Progress
from pipeline.cluster.run_store import RunStore
from pipeline.cluster.shared_storage import UnsharedError
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.config.search import OBJECTIVES
from pipeline.search.budget import Budget
from pipeline.search.capacity import lack_of_a_trial
from pipeline.search.trials import Trial, TrialBook, mark, reason_of, score_of
from pipeline.tracking import Tracker, tracking_address
from pipeline.tracking.outbox import Follower
from pipeline.training.loop.records import git_commit

_LOOK_SECONDS = 2.0


class Watch(TrialProgressCallback):
    """Follows the trials of one run of Tune; its callback, and a context manager around it.

    It takes the place of Tune's own reporter, which would print a line about each trial that ends
    without a report.

    ``total`` is how many trials there will be, None if that is not known.
    """

    def __init__(
        self, config: RunConfig, book: TrialBook, budget: Budget, total: int | None
    ) -> None:
        super().__init__()
        self.config, self.book, self.budget = config, book, budget
        trials = book.all()
        ended = sum(trial.status not in ("waiting", "running") for trial in trials)
        total = max(total or 0, len(trials), ended + 1)
        self._progress = Progress("search", total, "trials", done=ended)
        # Nodes may go and come as long as the search lasts: Tune waits for them without an end.
        lack = lack_of_a_trial(config, resources_of_nodes())
        self._lack = replace(lack, patience=math.inf)
        self._unshared = ""
        self._trackers: dict[str, Tracker] = {}
        self._closing: list[threading.Thread] = []
        self._scores: dict[str, float] = {}
        self._epochs: dict[str, int] = {}
        self._commit = git_commit() or NOT_STATED
        self._journals: dict[str, Follower] = {}  # of the trials that run
        self._looked = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._trackers):
            self._close_tracker(self.book.read(name))
        for thread in self._closing:
            thread.join()
        self._progress.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: the copy that Tune keeps on disk is never read."""
        return {}

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """Say where no node has room for a trial.

        Raises:
            UnsharedError: the node of a trial does not see a folder of the run.
        """
        self._lack.look()
        self._tell_steps()
        if self._unshared:
            raise UnsharedError(self._unshared)

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Open the record in MLflow of a trial that starts, or starts again."""
        name = trial.config["name"]
        found = self.book.read(name)
        if name not in self._journals:
            self._progress.say(f"search: trial {found.title} begins")
            self._journals[name] = Follower(RunFolder.of(found.config).metrics, {})
        if name in self._trackers or not self.config.tracking.log:
            return
        tracking = found.config.tracking.model_copy(
            update={"run_id": found.title, "tracking_uri": tracking_address(self.config)}
        )
        config = found.config.model_copy(update={"tracking": tracking})
        folder = RunFolder.of(config)
        tracker = Tracker(config, folder, parent=RunFolder.of(self.config))
        tracker.__enter__()
        tracker.log_params()
        tags = {"search.trial": name, "search.space": self.config.search.space or ""}
        tracker.set_tags({**tags, "mlflow.source.git.commit": self._commit})
        tracker.follow(folder.metrics)
        self._trackers[name] = tracker

    def _tell_steps(self) -> None:
        """Say how far the trials are whose journals are on this machine, until an epoch is told."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for name, journal in self._journals.items():
            if steps := [record["step"] for record in journal.fresh()]:
                self._advance(0, f"trial {name} step {steps[-1]}")

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """Count an epoch of a trial."""
        self._unshared = self._unshared or result.get("unshared", "")
        if "score" not in result:
            return
        name = trial.config["name"]
        with suppress(DataError):  # what it has made comes with the next one
            self.book.fetch(name, "tracking")
        self.budget.count(name, result["epoch"], result["seconds"])
        self._scores[name] = score = result["score"]
        self._epochs[name] = result["epoch"]
        self._advance(0, f"trial {name} epoch {result['epoch']} {score:.4g}")

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Say that the process of a trial has ended, and that another one goes on with it."""
        name = trial.config["name"]
        self._progress.say(f"search: the process of trial {name} ended; it goes on where it was")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Write down that a trial was ended early, unless its files say that it is done."""
        name = trial.config["name"]
        self.budget.end(name)
        self.book.fetch(name, "tracking", ended=True)
        found, epochs = self.book.read(name), self._epochs.get(name)
        if found.status == "running" and not (self.budget.used_up or self.budget.holds(name)):
            watched = self.config.search.objectives[0]
            score = score_of(found.curve[:epochs], watched)
            by = f"{self.config.search.scheduler}: {watched} {score:.4g}"
            reason = f"{by} after {epochs or found.epochs} epochs"
            mark(RunFolder.of(found.config), "stopped", reason, epochs)
        self._end(name)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Write down that a trial has failed: its process has ended too often."""
        name, error = trial.config["name"], trial.get_error()
        self.budget.end(name)
        self.book.fetch(name, "tracking", ended=True)
        found, cause = self.book.read(name), getattr(error, "cause", None) or error
        if found.status in ("waiting", "running"):
            known = isinstance(cause, BaseException)
            why = reason_of(cause) if known else "no reason was given"
            reason = f"its process ended again and again: {why}"
            mark(RunFolder.of(found.config), "failed", reason)
        self._end(name)

    def _end(self, name: str) -> None:
        trial = self.book.read(name)
        if trial.status not in ("waiting", "running"):
            self._journals.pop(name, None)
            self._close_tracker(trial)
            self._advance(1, f"trial {name} {trial.status}")

    def _advance(self, count: int, note: str) -> None:
        watched = self.config.search.objectives[0]
        if self._scores:
            best = (max if OBJECTIVES[watched] else min)(self._scores.values())
            note = f"{note}, best {watched} so far {best:.4g}"
        self._progress.advance(count, note)

    def _close_tracker(self, trial: Trial) -> None:
        """End the trial's record in MLflow, in a thread of its own."""
        tracker = self._trackers.pop(trial.name, None)
        if tracker is None:
            return
        names = ("sdr", "val_loss", "parameters", "seconds")
        figures = {f"search/{name}": trial.figure(name) for name in names}
        tracker.log_metrics({name: value for name, value in figures.items() if value is not None})
        tracker.set_tags({"search.status": trial.status, "search.reason": trial.reason})
        failed = StageError(trial.reason) if trial.status == "failed" else None

        def end() -> None:
            tracker.__exit__(type(failed) if failed else None, failed, None)
            RunStore(RunFolder.of(trial.config)).push("tracking")

        thread = threading.Thread(target=end)
        thread.start()
        self._closing.append(thread)
