"""The folder of a search: whose it is, its trials, how far each came, how it ended, and why."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lasaft.errors import LasaftError, StageError
from lasaft.files import atomic_write_json, file_sha256, read_json
from pipeline.cluster.run_store import STATES, TRAINED, RunStore
from pipeline.cluster.store import note_written
from pipeline.config import RunConfig, SearchConfig
from pipeline.config.fingerprints import digest
from pipeline.config.folders import TRIALS, RunFolder, below
from pipeline.config.roles import STANDS_FOR, identity, values
from pipeline.search.candidates import Candidate, Checker, searcher_of, trial_base
from pipeline.search.space import Settings, Space
from pipeline.training.loop.identity import DATA_HASH, claim_folder, hashes_of
from pipeline.training.loop.journal import read_history
from pipeline.training.loop.right_to_write import trains_here
from pipeline.training.loop.states import drop_states

Status = Literal["waiting", "running", "done", "stopped", "failed"]
# What a trial's process leaves at its end.
_MADE = ("training/metrics.jsonl", "training/result.json", "failed.json", "speed.json")
_LONGEST_NAME = 90
_PLAN = {"number", "repeat", "settings", "parameters"}
_SEAL = "sha256"
_ANEW = "put a copy of it back, or search anew in another output_dir"


@dataclass(frozen=True)
class Epoch:
    """What one epoch of a trial ended with; None where it was no finite number."""

    epoch: int  # how many epochs are done with it, from 1
    val_loss: float | None
    sdr: float | None  # mean over the targets of the SDR in validation, in dB
    seconds: float  # time of training up to here
    sources: dict[str, float | None]  # the SDR of each target, in dB


@dataclass(frozen=True)
class Trial:
    """One trial, as its files were when it was read."""

    name: str  # its folder's name: 0007, or 0007-seed1 of a repeat
    folder: Path
    number: int  # place of its settings in the search, from 0
    settings: Settings  # value by option
    config: RunConfig
    parameters: int
    repeat: int  # 0 for the search itself, 1 and up for a repeat with another seed
    curve: tuple[Epoch, ...]
    status: Status  # how it ended, if it did
    reason: str  # why it failed or was ended early
    seconds_per_song: float | None  # time to separate a song of four minutes, where it was measured

    @property
    def title(self) -> str:
        """A name for people, which can be one of a folder."""
        words = [f"{name}={shown(value)}" for name, value in self.settings.items()]
        text = re.sub(r"[^\w .+=-]", "-", " ".join([self.name, *words]))
        return text[:_LONGEST_NAME].rstrip(". ")

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        return len(self.curve)

    @property
    def best(self) -> Epoch | None:
        """The epoch whose weights are kept: the least validation loss."""
        return best_epoch(self.curve)

    @property
    def seconds(self) -> float:
        """Time of training so far."""
        return self.curve[-1].seconds if self.curve else 0.0

    def figure(self, objective: str) -> float | None:
        """Return the value of an objective, None where there is none."""
        if objective == "parameters":
            return float(self.parameters)
        if objective == "seconds":
            return self.seconds_per_song
        return score_of(self.curve, objective)


def shown(value: Any) -> str:
    """Return a value of an option as people read it.

    >>> shown(0.00123456), shown((0, 1)), shown(None)
    ('0.001235', '0+1', 'None')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def best_epoch(curve: Sequence[Epoch]) -> Epoch | None:
    """Return the epoch that training selects: the first with the least validation loss."""
    finite = [one for one in curve if one.val_loss is not None]
    return min(finite, key=lambda one: one.val_loss or 0.0) if finite else None


def score_of(curve: Sequence[Epoch], watched: str) -> float | None:
    """Return ``watched`` (sdr or val_loss) of the best epoch so far, None where it is no number."""
    best = best_epoch(curve)
    return None if best is None else getattr(best, watched)


def read_curve(journal: Path) -> tuple[Epoch, ...]:
    """Return the epochs in a training's journal."""
    epochs: dict[int, Epoch] = {}
    for record in read_history(journal):
        if record["kind"] == "epoch":
            number = record["epoch"] + 1
            epochs[number] = epoch_of(number, record["values"], record["seconds"])
    return tuple(epochs[number] for number in sorted(epochs))


def epoch_of(number: int, values: dict[str, float | None], seconds: float) -> Epoch:
    """Return an epoch from the values that training gives at its end."""
    sources = {
        name.split("/")[1]: _finite(value)
        for name, value in values.items()
        if name.startswith("valid/") and name.endswith("/SDR")
    }
    numbers = [value for value in sources.values() if value is not None]
    sdr = sum(numbers) / len(numbers) if numbers else None
    return Epoch(number, _finite(values.get("valid/loss")), sdr, seconds, sources)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class TrialBook:
    """Trials of a search: ``plan/<name>.json`` is written once, ``trials/<name>/`` as it runs."""

    root: Path
    checker: Checker  # turns settings back into configurations

    @cached_property
    def store(self) -> RunStore:
        """Where the search is kept."""
        return RunStore(RunFolder.of(self.checker.base))

    def fetch(self, name: str, *but: str, ended: bool = False) -> None:
        """Bring what a trial has made so far, but for its states and models, and ``but``.

        Where it trains on this machine, its files are here. Of one that has just ``ended`` the
        store may not list yet what says so.
        """
        trial = RunFolder.of(self.read(name).config)
        store = RunStore(trial)
        if ended and store.remote is not None:
            note_written(str(store.remote / made) for made in _MADE)
        if not trains_here(store):
            store.fetch(but=(*STATES, _state_of(trial), *TRAINED[1:], *but))

    def plan(self, candidate: Candidate, number: int, repeat: int = 0) -> Trial:
        """Write down what a new trial is, and return it."""
        assert candidate.parameters is not None, "an uncounted candidate"
        name = f"{number:04d}" + (f"-seed{repeat}" if repeat else "")
        plan = {"number": number, "repeat": repeat, "settings": candidate.settings}
        plan["parameters"] = candidate.parameters
        atomic_write_json(self.root / "plan" / f"{name}.json", plan | {_SEAL: digest(plan)})
        self.store.push_files([f"search/plan/{name}.json"])  # before anything of the trial is there
        return self.read(name)

    def names(self) -> list[str]:
        """Return the names of all trials: the search's in their order, then the repeats."""
        names = [path.stem for path in (self.root / "plan").glob("*.json")]
        return sorted(names, key=lambda name: ("-" in name, name))

    def all(self) -> list[Trial]:
        """Return every trial as it is now.

        Raises:
            StageError: one is missing; the next would get the number of another.
        """
        names = self.names()
        own = [name for name in names if "-" not in name]
        for number, name in enumerate(own):
            if name != (expected := f"{number:04d}"):
                raise StageError(f"{self.root}/plan/{expected}.json: is missing; {_ANEW}")
        return [self.read(name) for name in names]

    def read(self, name: str) -> Trial:
        """Return one trial as it is now."""
        file = self.root / "plan" / f"{name}.json"
        plan = read_json(file, _PLAN, _ANEW)
        if plan.pop(_SEAL, None) not in (None, digest(plan)):  # earlier versions wrote none
            raise StageError(f"{file}: was changed after it was written; {_ANEW}")
        settings = settings_of(plan)
        config = _trial_config(self.checker, settings, name, plan["repeat"])
        folder = RunFolder.of(config).root
        status, reason, epochs = _ending(folder)
        journal = RunFolder.of(config).metrics
        curve = read_curve(journal)[:epochs]
        known = hashes_of(RunFolder.of(config)) if status == "done" else {}
        whole = curve and known.get("journal") in (None, file_sha256(journal))
        if status == "done" and not whole:
            raise StageError(
                f"{journal}: is not as the trial has left it; put a copy of it back, or remove "
                f"{folder}: the trial is made again then"
            )
        if status == "waiting" and curve:
            status = "running"
        speed = _json(folder / "speed.json", "seconds_per_song").get("seconds_per_song")
        return Trial(
            name, folder, plan["number"], settings, config, plan["parameters"],
            plan["repeat"], curve, status, reason, speed,
        )  # fmt: skip


def settings_of(record: dict[str, Any]) -> Settings:
    """Return the settings in a JSON record, whose lists were tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record["settings"].items()
    }


def _trial_config(checker: Checker, settings: Settings, name: str, repeat: int) -> RunConfig:
    """Return the whole configuration of a trial, which keeps only the best model when it ends."""
    base = checker.settle(settings, sizes=False).config
    kept = {"save_top_k": 1, "save_weights_only": True, "sample_every_epochs": 0}
    seed = (base.train.seed + repeat) % 2**32
    train = base.train.model_copy(update={"seed": seed, **kept})
    run = RunFolder.of(checker.base)
    data = base.data.model_copy(update={"shards_dir": run.shards_address or run.shards})
    place = run.root / TRIALS / name
    if run.address is not None:
        place = below(run.address, f"{TRIALS}/{name}")
    return base.model_copy(update={"output_dir": place, "train": train, "data": data})


def _ending(folder: Path) -> tuple[Status, str, int | None]:
    """Return how a trial ended, why, and how many of its epochs count (None: all)."""
    endings: tuple[Status, ...] = ("failed", "stopped")
    for status in endings:
        if found := _json(folder / f"{status}.json", "reason"):
            return status, found["reason"], found.get("epochs")
    done = (folder / "training" / "result.json").exists()
    return "done" if done else "waiting", "", None


def _json(path: Path, key: str) -> dict[str, Any]:
    again = "remove it: that is found out again"
    return read_json(path, {key}, again) if path.exists() else {}


def mark(
    folder: RunFolder, ending: Literal["failed", "stopped"], reason: str, epochs: int | None = None
) -> None:
    """Record how a trial ended, and why; the state to go on from is of no use any more.

    ``epochs``: how many count, where training may have gone on until it heard of the end.
    """
    store = RunStore(folder)
    atomic_write_json(folder.root / f"{ending}.json", {"reason": reason, "epochs": epochs})
    store.push_files([f"{ending}.json"])
    drop_states(folder)
    for place in (*STATES, _state_of(folder)):
        store.remove(place)


def _state_of(folder: RunFolder) -> str:
    return folder.state.relative_to(folder.root).as_posix()


def reason_of(error: BaseException) -> str:
    """Return an error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return lines[0] if isinstance(error, LasaftError) else f"{type(error).__name__}: {lines[-1]}"


def search_identity(config: RunConfig, space: Space) -> dict[str, Any]:
    """Return what decides the trials of a search besides the shards, by dotted name."""
    base, searcher = trial_base(config), searcher_of(config.search, space)
    mine = {f"search.{name}": value for name, value in values(config, "search", "result").items()}
    mine["search.space"] = f"{space.name} ({digest(repr(space))[:12]})"
    mine[STANDS_FOR["space"]] = digest(repr(replace(space, name="")))
    mine |= {STANDS_FOR["searcher"]: searcher, "search.trial_epochs": base.train.max_epochs}
    if searcher == "grid":
        mine["search.search_seed"] = SearchConfig().search_seed  # a grid draws nothing
    shared = identity(base)
    shared.pop("train.max_epochs", None)  # trial_epochs says them
    return mine | shared


def claim(config: RunConfig, space: Space, data_hash: str) -> None:
    """Write down which search the folder is of, or compare this one with what is written there.

    Raises:
        ConfigError: it is another's; one line for each option that differs.
    """
    mine = search_identity(config, space) | {DATA_HASH: data_hash}
    claim_folder(RunFolder.of(config).search, config, mine, "search")
