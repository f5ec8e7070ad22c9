"""A whole search: trials on Ray Tune, then repeats of the best with other seeds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, Literal

from ray import tune
from ray.tune.trainable.function_trainable import wrap_function

from lasaft.errors import DataError
from lasaft.files import atomic_write_json
from pipeline.cluster.address import named_address
from pipeline.cluster.connection import resources_of_nodes
from pipeline.cluster.nodes import wait_for_room
from pipeline.cluster.one_writer import alone_in_run
from pipeline.cluster.progress import say
from pipeline.cluster.run_store import LARGE
from pipeline.cluster.shared_storage import ready_cluster, seen_folders
from pipeline.config import RunConfig, to_json
from pipeline.config.folders import TRIALS, RunFolder
from pipeline.config.search import OBJECTIVES
from pipeline.data.shards.manifest import read_manifest
from pipeline.data.shards.store import shard_place
from pipeline.search.budget import Budget
from pipeline.search.candidates import Candidate, Checker, searcher_of, trial_base
from pipeline.search.capacity import (
    STARTER_CPUS,
    Places,
    gpus_of_a_trial,
    lack_of_a_trial,
    share_places,
)
from pipeline.search.proposals import grid, propose_optuna, propose_random
from pipeline.search.ranking import SearchResult, conclude, ranked
from pipeline.search.space_reader import read_space
from pipeline.search.trial_process import run_trial, wait_for_end
from pipeline.search.trials import Trial, TrialBook, claim
from pipeline.search.tune_parts import Queue, build_scheduler, replay
from pipeline.search.watch import Watch

_DEFAULT_TRIALS = 12
_UNFINISHED, _ENDED = ("waiting", "running"), ("done", "stopped")
# How often a trial is started again whose process has died (no memory, a lost node).
_MAX_FAILURES = 3
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def search(config: RunConfig, begin: Callable[[], None] = lambda: None) -> SearchResult:
    """Search for the best settings, or go on where an earlier call was stopped.

    Args:
        config: the run's settings, with a ``search.space``; the shards must be there.
        begin: called before the first trial, once the folder, shards and space are known to fit.

    Returns:
        The ranked trials and the files with the winner's settings.

    Raises:
        ConfigError: the space, or options that do not fit it, the shards, the cluster, or an
            earlier search in the same ``output_dir``.
        DataError: the shards are missing or damaged.
        StageError: no trial ended with a result; the reasons are named.
    """
    assert config.search.space is not None, "a search without a space"
    space = read_space(config.search.space)
    folder = RunFolder.of(config)
    place = shard_place(folder)
    manifest = read_manifest(place)
    manifest.require_model(config.model)
    if not any(track.split == "valid" for track in manifest.tracks):
        raise DataError(
            f"shards_dir: {place} has no validation tracks, by which trials are compared"
        )
    with alone_in_run(config):
        book = TrialBook(folder.search, Checker(trial_base(config), space))
        if not book.names():
            book.store.remove(TRIALS)  # of a search that was put aside
        claim(config, space, manifest.hash)
        book.store.push("search", but=LARGE)
        for name in book.names():
            book.fetch(name)
        run = _Run(config, book)
        begin()
        if run.has_work():
            with ready_cluster(config, "to run trials"):
                run.work()
        return conclude(config, space, run.book.all(), run.note)


class _Run:
    """One call of a search; ``note`` says why it ended before all trials had, if it did."""

    def __init__(self, config: RunConfig, book: TrialBook) -> None:
        self.config, self.book, self.note = config, book, ""
        self.settings, self.space = config.search, book.checker.space
        self.searcher = searcher_of(self.settings, self.space)
        self._grid = grid(book.checker) if self.searcher == "grid" else []
        if self.searcher != "grid" and not book.names():
            # A space without a valid candidate is refused before the cluster is touched.
            propose_random(book.checker, self.settings.search_seed, [])

    @property
    def limit(self) -> int | None:
        """How many trials there may be; None if only the other budgets limit them."""
        search = self.settings
        if self.searcher == "grid":
            return min(search.num_trials or len(self._grid), len(self._grid))
        others = (search.total_epochs, search.max_hours, search.max_gpu_hours)
        return search.num_trials or (_DEFAULT_TRIALS if others == (None, None, None) else None)

    def trials(self, *, repeats: bool = False) -> list[Trial]:
        """Return the search's own trials, or the repeats with other seeds."""
        return [trial for trial in self.book.all() if bool(trial.repeat) == repeats]

    def has_work(self) -> bool:
        """Return whether anything is left to do within the budget."""
        self._note_budget(self._budget())
        unfinished = any(one.status in _UNFINISHED for one in self.book.all())
        left = unfinished or self._may_propose() or bool(self._repeats_missing())
        return not self.note and left

    def _budget(self) -> Budget:
        clock = self.book.root / "clock.json"
        return Budget(self.settings, clock, gpus_of_a_trial(self.config), self.book.all())

    def _note_budget(self, budget: Budget) -> None:
        self.note = budget.used_up and f"the budget is used up: {budget.used_up}"

    def _may_propose(self) -> bool:
        drawn_out = (self.book.root / "drawn_out").exists()
        return not drawn_out and (self.limit is None or len(self.trials()) < self.limit)

    def propose(self) -> Trial | None:
        """Plan the next new trial; None when the search has enough, or nothing new is left."""
        if not self._may_propose():
            return None
        earlier, checker, seed = self.trials(), self.book.checker, self.settings.search_seed
        if self.searcher == "grid":
            candidate: Candidate | None = self._grid[len(earlier)]
        elif self.searcher == "optuna":
            goals = [(name, OBJECTIVES[name]) for name in self.settings.objectives]
            candidate = propose_optuna(checker, seed, goals, earlier)
        else:
            candidate = propose_random(checker, seed, earlier)
        if candidate is None:
            atomic_write_json(self.book.root / "drawn_out", len(earlier))
            return None
        return self.book.plan(candidate, len(earlier))

    def _repeats_missing(self) -> list[tuple[Trial, int]]:
        """Return the repeats that are not planned yet, once the trials have ended."""
        ended = [one for one in self.trials() if one.status in _ENDED]
        top = ranked(ended, self.settings.objectives[0])[: self.settings.top_settings]
        known = {(one.number, one.repeat) for one in self.trials(repeats=True)}
        return [
            (trial, repeat)
            for trial in top
            for repeat in range(1, self.settings.seeds + 1)
            if (trial.number, repeat) not in known
        ]

    def work(self) -> None:
        """Run the trials, then the repeats; call while connected."""
        nodes = wait_for_room(self.config, lack_of_a_trial(self.config, resources_of_nodes()))
        places = share_places(self.config, nodes, self.limit)
        self._tune(places, self.trials(), self.propose, self.settings.scheduler)
        while not self.note and self._has_held_back():
            self._tune(places, self.trials(), self.propose, self.settings.scheduler)
        if self.note or not self.settings.seeds:
            return
        for trial, repeat in self._repeats_missing():
            candidate = Candidate(trial.settings, trial.config, trial.parameters)
            self.book.plan(candidate, trial.number, repeat)
        self._tune(places, self.trials(repeats=True), lambda: None, "none")

    def _has_held_back(self) -> bool:
        """Return whether a trial waits for epochs that another, which failed, has left over."""
        limited = self.settings.total_epochs is not None
        return limited and any(one.status == "running" for one in self.trials())

    def _tune(
        self,
        places: Places,
        trials: Sequence[Trial],
        more: Callable[[], Trial | None],
        scheduler: Literal["none", "asha", "median"],
    ) -> None:
        """Let Tune run the unfinished ``trials``, then those that ``more`` plans."""
        waiting = [one for one in trials if one.status in _UNFINISHED]
        if not waiting:
            if (first := more()) is None:
                return
            waiting = [first]
        settings = self.settings.model_copy(update={"scheduler": scheduler})
        watched = settings.objectives[0]
        rules = build_scheduler(settings, self.book.checker.base.train.max_epochs)
        for trial in [one for one in trials if one.status in _ENDED]:
            replay(rules, trial, watched, f"before-{trial.name}")
        budget, folders = self._budget(), seen_folders(self.config)

        def begun(trial_id: str, trial: Trial) -> dict[str, Any]:
            replay(rules, trial, watched, trial_id)
            budget.begin(trial_id, trial.name)
            return self._payload(trial, places) | {"folders": folders}

        queue = Queue(waiting, more, begun, budget.has_room)
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        # Our own files are the truth: what Tune keeps of an earlier call is not read.
        storage = self.book.root / "ray"
        shutil.rmtree(storage, ignore_errors=True)
        say(f"search: starting trials, {places.trials} at a time ...")
        with Watch(self.config, self.book, budget, self.limit) as watch:
            tuner = tune.Tuner(
                tune.with_resources(_trainable(), self._resources(places)),
                tune_config=tune.TuneConfig(
                    search_alg=queue, scheduler=rules, num_samples=-1, reuse_actors=True,
                    max_concurrent_trials=places.trials,
                ),
                run_config=tune.RunConfig(
                    name="tune", storage_path=str(storage), verbose=0, stop=budget,
                    failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
                    callbacks=[watch],
                ),
            )  # fmt: skip
            try:
                tuner.fit()
            finally:
                budget.save()
                self.book.store.push_files(["search/clock.json"])
        shutil.rmtree(storage, ignore_errors=True)
        self._note_budget(budget)

    def _resources(self, places: Places) -> tune.PlacementGroupFactory:
        if self.config.train.processes > 1:
            return tune.PlacementGroupFactory([{"CPU": STARTER_CPUS}])
        bundle = {"CPU": places.cpus} | ({"GPU": places.gpus} if places.gpus else {})
        return tune.PlacementGroupFactory([bundle])

    def _payload(self, trial: Trial, places: Places) -> dict[str, Any]:
        train, cluster = trial.config.train, trial.config.cluster
        if train.processes > 1:
            each = f"CPU={places.cpus:.4f}" + (",GPU=1" if places.gpus else "")
            train = train.model_copy(update={"resources_per_worker": each})
        # Its process has another environment than this one.
        cluster = cluster.model_copy(update={"address": named_address(cluster)})
        return {
            "name": trial.name,
            "config": to_json(trial.config.model_copy(update={"train": train, "cluster": cluster})),
            "watched": self.settings.objectives[0],
            "timed": "seconds" in self.settings.objectives,
            "gpu": places.gpus > 0,
        }


def _trainable() -> type:
    """Return Tune's form of a trial, which ends its training in order before its process ends."""

    class SearchTrial(wrap_function(run_trial)):
        def cleanup(self) -> None:
            # Tune asks the trial to end, but would not wait for it.
            try:
                super().cleanup()
            finally:
                wait_for_end()

    return SearchTrial
