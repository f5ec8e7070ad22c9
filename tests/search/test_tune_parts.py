"""Who ends early and when everything ends, also after an interruption: no cluster is needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import TrialScheduler

from lasaft.config import ModelConfig
from lasaft.errors import ConfigError, DataError, StageError
from lasaft.files import file_sha256
from pipeline.config import RunConfig, SearchConfig, TrainConfig
from pipeline.config.folders import RunFolder
from pipeline.config.roles import STANDS_FOR
from pipeline.search import trial_process
from pipeline.search.budget import Budget
from pipeline.search.candidates import Checker
from pipeline.search.ranking import winning_config
from pipeline.search.space import Dimension, Space
from pipeline.search.trials import (
    Epoch,
    Trial,
    TrialBook,
    best_epoch,
    claim,
    epoch_of,
    mark,
    read_curve,
)
from pipeline.search.tune_parts import build_scheduler, replay
from pipeline.training.loop.identity import finish
from pipeline.training.loop.journal import History, make_record
from pipeline.training.loop.records import TrainResult

SPACE = Space("x", (Dimension("lr", "log", (), 1e-4, 1e-2),))
BASE = RunConfig(model=ModelConfig(n_fft=512, hop_length=256, num_frame=32, n_blocks=3))


def _trial(name: str, sdr: Sequence[float]) -> Trial:
    curve = tuple(Epoch(n, 1.0 / n, value, 10.0 * n, {}) for n, value in enumerate(sdr, 1))
    return Trial(name, Path(name), 0, {}, BASE, 100, 0, curve, "done", "", None)


class _Running:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def _decision(scheduler: TrialScheduler, trial_id: str, epoch: int, score: float) -> str:
    nobody: Any = None
    trial: Any = _Running(trial_id)
    scheduler.on_trial_add(nobody, trial)
    return scheduler.on_trial_result(nobody, trial, {"epoch": epoch, "score": score})


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_scheduler_goes_on_with_the_trials_of_before(kind: Any) -> None:
    scheduler = build_scheduler(SearchConfig(space="x", scheduler=kind), 9)
    for number in range(3):
        replay(scheduler, _trial(f"{number}", [3.0, 4.0, 5.0]), "sdr", f"before-{number}")
    assert _decision(scheduler, "weak", 1, 1.0) == TrialScheduler.STOP
    assert _decision(scheduler, "strong", 1, 6.0) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_trial_that_ends_without_a_report_disturbs_no_scheduler(kind: Any) -> None:
    scheduler = build_scheduler(SearchConfig(space="x", scheduler=kind), 9)
    nobody: Any = None
    failed: Any = _Running("failed")
    scheduler.on_trial_add(nobody, failed)
    scheduler.on_trial_complete(nobody, failed, {})
    for number in range(3):
        replay(scheduler, _trial(f"{number}", [3.0, 4.0, 5.0]), "sdr", f"before-{number}")
    assert _decision(scheduler, "weak", 1, 1.0) == TrialScheduler.STOP
    assert _decision(scheduler, "strong", 1, 6.0) == TrialScheduler.CONTINUE


def test_a_trial_that_goes_on_is_not_counted_twice_at_a_rung() -> None:
    scheduler = build_scheduler(SearchConfig(space="x", scheduler="asha"), 9)
    for number in range(3):
        replay(scheduler, _trial(f"{number}", [3.0, 4.0, 5.0]), "sdr", f"before-{number}")
    replay(scheduler, _trial("mine", [6.0]), "sdr", "mine")
    # Below what the others had at epoch 1, but that rung was passed before the interruption.
    assert _decision(scheduler, "mine", 2, 2.0) == TrialScheduler.CONTINUE
    assert _decision(scheduler, "mine", 3, 2.0) == TrialScheduler.STOP


def test_less_is_better_where_the_objective_says_so() -> None:
    search = SearchConfig(space="x", scheduler="asha", objectives=("val_loss",))
    scheduler = build_scheduler(search, 9)
    for number in range(3):
        replay(scheduler, _trial(f"{number}", [0.0, 0.0, 0.0]), "val_loss", f"before-{number}")
    assert _decision(scheduler, "weak", 1, 2.0) == TrialScheduler.STOP


def test_budgets_count_over_interruptions(tmp_path: Path) -> None:
    trials = [_trial("0", [1.0, 2.0]), _trial("1", [1.0])]
    budget = Budget(SearchConfig(space="x", total_epochs=5), tmp_path / "a.json", 0, trials)
    assert not budget.stop_all()
    budget.count("1", 3, 30.0)
    assert budget.used_up == "total_epochs 5"
    gpus = Budget(SearchConfig(space="x", max_gpu_hours=0.02), tmp_path / "b.json", 2, trials)
    assert not gpus.used_up  # 2 GPUs x 30 s of training
    gpus.count("1", 2, 20.0)
    assert gpus.used_up == "max_gpu_hours 0.02"
    (tmp_path / "c.json").write_text(json.dumps({"seconds": 3600.5}))
    assert Budget(SearchConfig(space="x", max_hours=1), tmp_path / "c.json", 0, []).used_up


def test_an_epoch_begins_only_where_the_budget_has_room_for_it(tmp_path: Path) -> None:
    budget = Budget(SearchConfig(space="x", total_epochs=5), tmp_path / "a.json", 0, [])
    for trial_id, name in (("one", "0"), ("two", "1")):
        assert budget.has_room()
        budget.begin(trial_id, name)
    for name, epoch in (("0", 1), ("1", 1), ("0", 2)):
        assert not budget("one" if name == "0" else "two", {"epoch": epoch})
        budget.count(name, epoch, 1.0)
    assert not budget.has_room()  # three are done, two are being trained
    assert budget("two", {"epoch": 2})
    budget.count("1", 2, 1.0)
    budget.end("1")
    assert budget.holds("1")
    assert not budget.used_up  # the other's third epoch is not there yet
    budget.end("0")  # and never will be: it has failed
    assert budget.has_room()


def test_a_search_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    search = SearchConfig(space="x")
    config = RunConfig(model=BASE.model, search=search, output_dir=tmp_path)
    claim(config, SPACE, "hash")
    file = tmp_path / "search" / "identity.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"search.perturb_epochs": 2}))
    claim(config, SPACE, "hash")
    with pytest.raises(ConfigError, match="data hash: got 'other'"):
        claim(config, SPACE, "other")


GRID = Space("x", (Dimension("lr", "choices", (0.001, 0.01)),))


def _claimed(folder: Path, space: Space = GRID, *, train: Any = None, **search: Any) -> None:
    config = RunConfig(
        model=BASE.model, train=TrainConfig(**train or {}), output_dir=folder,
        search=SearchConfig(space="x", **search),
    )  # fmt: skip
    claim(config, space, "hash")


def test_a_space_counts_by_its_content_and_not_by_its_files_name(tmp_path: Path) -> None:
    _claimed(tmp_path)
    _claimed(tmp_path, replace(GRID, name="renamed"))
    wider = replace(GRID, dimensions=(Dimension("lr", "choices", (0.001, 0.02)),))
    with pytest.raises(ConfigError, match=r"^space: got 'x \("):
        _claimed(tmp_path, wider)


def test_a_grid_draws_nothing_so_its_seed_may_change(tmp_path: Path) -> None:
    _claimed(tmp_path / "grid", search_seed=3)
    _claimed(tmp_path / "grid", search_seed=4)
    _claimed(tmp_path / "random", searcher="random", search_seed=3)
    with pytest.raises(ConfigError, match="search_seed: got 4"):
        _claimed(tmp_path / "random", searcher="random", search_seed=4)


def test_a_grid_never_becomes_random_draws_in_its_place(tmp_path: Path) -> None:
    _claimed(tmp_path)
    _claimed(tmp_path, searcher="grid", num_trials=1)
    with pytest.raises(ConfigError, match=r"^searcher: got 'None \(random\)', .* 'None \(grid\)'"):
        _claimed(tmp_path, num_trials=1)
    # What a version of before wrote does not say which of the two it was.
    file = tmp_path / "search" / "identity.json"
    old = json.loads(file.read_bytes())
    file.write_text(json.dumps({k: v for k, v in old.items() if k not in STANDS_FOR.values()}))
    _claimed(tmp_path, num_trials=1)


def test_the_epochs_of_a_trial_count_however_they_are_said(tmp_path: Path) -> None:
    cosine = {"lr_schedule": "cosine"}
    _claimed(tmp_path, train=cosine | {"max_epochs": 5})
    _claimed(tmp_path, train=cosine | {"max_epochs": 90}, trial_epochs=5)
    with pytest.raises(ConfigError, match=r"^trial_epochs: got 6, .* has 5, [^\n]*$"):
        _claimed(tmp_path, train=cosine | {"max_epochs": 90}, trial_epochs=6)


def test_a_trial_is_what_its_files_say(tmp_path: Path) -> None:
    base = BASE.model_copy(update={"output_dir": tmp_path})
    checker = Checker(base, SPACE)
    book = TrialBook(tmp_path / "search", checker)
    trial = book.plan(checker.settle({"lr": 0.001}), 3)
    assert (trial.status, trial.epochs, trial.config.train.lr) == ("waiting", 0, 0.001)
    assert trial.title == "0003 lr=0.001"
    journal = History(trial.folder / "training" / "metrics.jsonl")
    for epoch, loss in enumerate([2.0, 1.0, float("nan")]):
        values = {"valid/loss": loss, "valid/vocals/SDR": 1.0 + epoch, "valid/bass/SDR": 3.0}
        record = make_record("epoch", step=epoch, epoch=epoch, seconds=epoch, values=values)
        journal.append(record)
    journal.close()
    trial = book.read("0003")
    assert (trial.status, trial.epochs, trial.figure("sdr")) == ("running", 3, 2.5)
    assert trial.best is not None
    assert trial.best.epoch == 2
    mark(RunFolder.of(trial.config), "failed", "the val_loss is not a number")
    assert (book.read("0003").status, book.read("0003").reason) == (
        "failed", "the val_loss is not a number",
    )  # fmt: skip
    repeat = book.plan(checker.settle({"lr": 0.001}), 3, repeat=2)
    assert repeat.config.train.seed == base.train.seed + 2
    assert book.names() == ["0003", "0003-seed2"]


def test_a_search_that_lacks_a_trial_gives_no_number_twice(tmp_path: Path) -> None:
    checker = Checker(BASE.model_copy(update={"output_dir": tmp_path}), SPACE)
    book = TrialBook(tmp_path / "search", checker)
    for number in range(3):
        book.plan(checker.settle({"lr": 0.001 * (number + 1)}), number)
    (tmp_path / "search" / "plan" / "0002.json").unlink()
    assert [trial.number for trial in book.all()] == [0, 1]  # the last is proposed again
    (tmp_path / "search" / "plan" / "0000.json").unlink()
    with pytest.raises(StageError, match=r"plan/0000\.json: is missing; put a copy of it back"):
        book.all()


def test_a_trial_that_was_changed_is_told(tmp_path: Path) -> None:
    checker = Checker(BASE.model_copy(update={"output_dir": tmp_path}), SPACE)
    book = TrialBook(tmp_path / "search", checker)
    trial = book.plan(checker.settle({"lr": 0.001}), 0)
    folder = RunFolder.of(trial.config)
    journal = History(folder.metrics)
    values = {"valid/loss": 1.5, "valid/vocals/SDR": 4.25}
    journal.append(make_record("epoch", step=0, epoch=0, seconds=1.0, values=values))
    journal.close()
    result = TrainResult(folder.checkpoint, 0, 1.5, {}, 1, 1, 0, 1.0, 0.0, "all epochs")
    finish(folder, trial.config, result, {"journal": file_sha256(folder.metrics)})
    assert book.read("0000").figure("sdr") == 4.25
    text = folder.metrics.read_text()
    for damaged in (text.replace("4.25", "9.25"), ""):
        folder.metrics.write_text(damaged)
        with pytest.raises(StageError, match=r"metrics\.jsonl: is not as the trial has left it"):
            book.read("0000")
    folder.metrics.write_text(text)
    plan = tmp_path / "search" / "plan" / "0000.json"
    plan.write_text(plan.read_text().replace("0.001", "0.002"))
    with pytest.raises(StageError, match=r"0000\.json: was changed after it was written"):
        book.read("0000")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"numb\x80r": 1}', b"[" * 99_999])
def test_a_damaged_file_of_a_search_is_named(tmp_path: Path, content: bytes) -> None:
    checker = Checker(BASE.model_copy(update={"output_dir": tmp_path}), SPACE)
    book = TrialBook(tmp_path / "search", checker)
    folder = book.plan(checker.settle({"lr": 0.001}), 3).folder
    folder.mkdir(parents=True)
    ends = "put a copy of it back, or search anew", "remove it"
    for file, advice in (
        (folder / "speed.json", ends[1]),
        (folder / "stopped.json", ends[1]),
        (tmp_path / "search" / "plan" / "0003.json", ends[0]),
    ):
        file.write_bytes(content)
        with pytest.raises(StageError, match=rf"/{file.name}: is damaged .*; {advice}"):
            book.read("0003")
        file.unlink()
    journal = folder / "training" / "metrics.jsonl"
    journal.parent.mkdir()
    journal.write_bytes(content + b"\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1: not a record of training"):
        read_curve(journal)
    clock = tmp_path / "clock.json"
    clock.write_bytes(content)
    with pytest.raises(StageError, match=r"clock\.json: is damaged .*; remove it"):
        Budget(SearchConfig(), clock, 0, [])
    winner = tmp_path / "search" / "winner.json"
    winner.write_bytes(content)
    config = RunConfig(output_dir=tmp_path, search=SearchConfig(space="small"))
    with pytest.raises(StageError, match=r"winner\.json: is damaged .*jobs.tune writes"):
        winning_config(config)


def test_epochs_without_numbers_are_never_the_best() -> None:
    bad = epoch_of(1, {"valid/loss": float("nan"), "valid/vocals/SDR": 1.0}, 1.0)
    good = epoch_of(2, {"valid/loss": 5.0, "valid/vocals/SDR": float("nan")}, 1.0)
    assert best_epoch([bad]) is None
    assert best_epoch([bad, good]) == good
    assert good.sdr is None


def test_a_trial_of_many_processes_tells_what_they_report_and_reads_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal may be kept on another node."""
    told: list[dict[str, Any]] = []
    config = RunConfig(
        output_dir=tmp_path / "trial", model=BASE.model, train=TrainConfig(max_epochs=3)
    )

    def fit(config: RunConfig, folder: RunFolder, heard: Callable[[dict[str, Any]], None]) -> None:
        for epoch, phase in ((0, "train"), (0, "epoch"), (0, "epoch"), (1, "epoch"), (2, "epoch")):
            values = {"valid/loss": 1.0 - epoch, "valid/vocals/SDR": 2.0, "valid/drums/SDR": 4.0}
            heard({"epoch": epoch, "phase": phase, "seconds": 5.0 * (epoch + 1), **values})

    monkeypatch.setattr(trial_process, "fit", fit)
    monkeypatch.setattr(tune, "report", told.append)
    trial_process._train_many(config, "sdr")
    # What happened again after a restart is told once; the last epoch when the training has ended.
    assert told == [
        {"epoch": 1, "score": 3.0, "seconds": 5.0},
        {"epoch": 2, "score": 3.0, "seconds": 10.0},
    ]
