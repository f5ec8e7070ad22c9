"""Validation beside training: inline's numbers, decisions an epoch later, and an exact resume."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from lasaft.checkpoint import load_checkpoint
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.outlet import Outlet
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.validating import Found, examine, network_of
from tests.helpers.processes import in_processes
from tests.helpers.training import (
    ALONE,
    NoiseData,
    assert_same_training,
    run_tiny,
    tiny_config,
    training_history,
    training_tensors,
)

# Steps of which each moment counts: a state is saved after each of them.
ALL_SAVED: dict[str, Any] = {
    "steps_per_epoch": 3, "max_epochs": 4, "mid_epoch_seconds": 1e-9, "save_top_k": 2, "lr": 0.1,
}  # fmt: skip


def _beside(folder: Path, **train: Any) -> RunConfig:
    return tiny_config(folder, validation="beside", **train)


def _by_epoch(config: RunConfig) -> list[dict[str, Any]]:
    records = training_history(config)
    return sorted((r for r in records if r["kind"] != "step"), key=lambda r: r["epoch"])


def _assert_same_outcome(first: RunConfig, second: RunConfig) -> None:
    """Two trainings publish the same models with the same values, whenever they decided on them."""
    assert _by_epoch(first) == _by_epoch(second)
    places = [RunFolder.of(config) for config in (first, second)]
    names = [{path.name for path in folder.checkpoints.iterdir()} for folder in places]
    assert names[0] == names[1]
    pairs = [[folder.checkpoints / name for folder in places] for name in names[0]]
    for pair in [*pairs, [folder.checkpoint for folder in places]]:
        ours, theirs = (load_checkpoint(place) for place in pair)
        assert ours.hash == theirs.hash
        clock = {"seconds": 0}
        assert ours.provenance | clock == theirs.provenance | clock


class Other(Outlet):
    """Somebody else validates, who ends when he may, or dies in an epoch of what ``dies`` says."""

    def __init__(
        self, config: RunConfig, dies: Mapping[int, str] | None = None, tracks: int = 1
    ) -> None:
        super().__init__(RunFolder.of(config))
        self._config, self._dies, self._data = config, dies or {}, NoiseData(config, tracks=tracks)
        self.asked: list[int] = []
        self.may_end = threading.Event()

    def ask(self, weights: Mapping[str, Tensor], epoch: int) -> OthersAnswer:
        self.asked.append(epoch)
        copy = {name: value.clone() for name, value in weights.items()}

        def work() -> Found:
            network = network_of(self._config, copy, ALONE)
            return examine(self._config, network, self._data.validation_tracks(), ALONE, epoch)

        return OthersAnswer(self.may_end, work, self._dies.get(epoch))


class OthersAnswer:
    def __init__(
        self, may_end: threading.Event, work: Callable[[], Found], dies: str | None
    ) -> None:
        self._may_end, self._work, self._dies, self._waits = may_end, work, dies, 0

    def wait(self, seconds: float) -> bool:
        self._waits += 1
        return self._waits > 2 and self._may_end.is_set()

    def get(self) -> Found | str:
        return self._dies or self._work()


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "sample_every_epochs": 2}])
def test_beside_gives_the_models_and_values_of_inline(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    options = ALL_SAVED | options
    inline = tiny_config(tmp_path / "inline", **options)
    alone, others = _beside(tmp_path / "alone", **options), _beside(tmp_path / "other", **options)
    whole = run_tiny(inline)
    outlet = Other(others)
    outlet.may_end.set()
    for result in (run_tiny(alone), run_tiny(others, outlet=outlet)):
        assert result.best_val_loss == whole.best_val_loss
        assert (result.val_sdr, result.reason) == (whole.val_sdr, whole.reason)
    assert outlet.asked == [0, 1, 2, 3]
    assert_same_training(alone, others)
    _assert_same_outcome(alone, inline)
    ours, theirs = training_tensors(alone), training_tensors(inline)
    assert {n for n, v in ours.items() if n not in theirs or not torch.equal(v, theirs[n])} == {
        name for name in ours if name.startswith("aside/")
    }
    pictures = [sorted(RunFolder.of(c).training.glob("samples/*/*")) for c in (inline, others)]
    assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]


@pytest.mark.parametrize("stop_at", [2, 3, 4, 7, 11])
def test_a_kill_at_any_step_changes_nothing(tmp_path: Path, stop_at: int) -> None:
    options = ALL_SAVED | {"ema_decay": 0.9}
    calm, disturbed = _beside(tmp_path / "calm", **options), _beside(tmp_path / "x", **options)
    run_tiny(calm)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(disturbed, stop_at=stop_at)
    run_tiny(disturbed)
    assert_same_training(calm, disturbed)
    _assert_same_outcome(calm, disturbed)


@pytest.mark.parametrize("fails_at", range(4))
def test_a_kill_while_an_epoch_is_decided_on_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    calm, disturbed = _beside(tmp_path / "calm", **ALL_SAVED), _beside(tmp_path / "x", **ALL_SAVED)
    run_tiny(calm)

    def killed(*given: Any) -> Found:
        if given[-1] == fails_at:
            raise KeyboardInterrupt
        return examine(*given)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.loop.validating.examine", killed)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(disturbed)
    run_tiny(disturbed)
    assert_same_training(calm, disturbed)
    _assert_same_outcome(calm, disturbed)


def test_training_stops_one_epoch_later_with_the_same_best(tmp_path: Path) -> None:
    options = ALL_SAVED | {"max_epochs": 30, "patience": 1, "min_delta": 1e6}
    inline, beside = tiny_config(tmp_path / "a", **options), _beside(tmp_path / "b", **options)
    first, later = run_tiny(inline), run_tiny(beside)
    assert (first.epochs, later.epochs) == (2, 3)
    assert later.reason == first.reason == "no better val_loss for 1 epochs"
    assert _by_epoch(beside)[:2] == _by_epoch(inline)[:2]
    # What the last epoch was like is known, too.
    assert [r["epoch"] for r in _by_epoch(beside) if r["kind"] == "epoch"] == [0, 1, 2]
    again = run_tiny(_beside(tmp_path / "b", **options))
    assert replace(again, seconds=later.seconds) == later


def test_the_rate_is_halved_one_epoch_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.loop.optimiser.PLATEAU_THRESHOLD", 1e6)
    monkeypatch.setattr("pipeline.training.loop.optimiser.Plateau.__init__.__defaults__", (0,))
    options = {"steps_per_epoch": 10, "max_epochs": 5, "auto_lr_schedule": True, "patience": 1000}
    rates = []
    for config in (tiny_config(tmp_path / "a", **options), _beside(tmp_path / "b", **options)):
        run_tiny(config)
        steps = [r["values"] for r in training_history(config) if r["kind"] == "step"]
        rates.append([values["train/lr"] for values in steps])
    inline, beside = rates
    assert len(set(inline)) > 2
    assert beside == [inline[0], *inline[:-1]]


def test_an_answer_that_comes_late_or_never_changes_nothing(tmp_path: Path) -> None:
    calm, config = _beside(tmp_path / "calm", **ALL_SAVED), _beside(tmp_path / "x", **ALL_SAVED)
    run_tiny(calm)
    outlet = Other(config, dies={0: "SIGKILL", 3: "it had no memory"})
    threading.Timer(2.0, outlet.may_end.set).start()
    result = run_tiny(config, outlet=outlet)
    assert_same_training(calm, config)
    _assert_same_outcome(calm, config)
    (note,) = (text for text in result.notes if "SIGKILL" in text)
    assert "the training does its work" in note


def test_a_longer_training_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    whole = _beside(tmp_path / "whole", **ALL_SAVED)
    run_tiny(whole)
    for epochs in (1, 3, 4):
        longer = _beside(tmp_path / "x", **ALL_SAVED | {"max_epochs": epochs})
        run_tiny(longer)
        assert len([r for r in _by_epoch(longer) if r["kind"] == "epoch"]) == epochs
    assert_same_training(longer, whole)
    _assert_same_outcome(longer, whole)


def test_what_a_time_limit_cuts_short_has_a_model_of_its_whole_epochs(tmp_path: Path) -> None:
    short = run_tiny(_beside(tmp_path / "short", time_limit_hours=1e-9))
    assert (short.epochs, short.best_epoch, short.timed_out) == (0, 0, True)
    assert load_checkpoint(short.checkpoint).provenance["step"] == 1
    config = _beside(tmp_path / "x", **ALL_SAVED)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(config, stop_at=4)
    cut = run_tiny(_beside(tmp_path / "x", **ALL_SAVED | {"time_limit_hours": 1e-9}))
    assert (cut.epochs, cut.best_epoch, cut.timed_out) == (1, 0, True)
    assert load_checkpoint(cut.checkpoint).provenance["step"] == 3
    run_tiny(config)
    calm = _beside(tmp_path / "calm", **ALL_SAVED)
    run_tiny(calm)
    assert_same_training(config, calm)


def _of_two(folder: str) -> None:
    ranks, root = Ranks.current(torch.device("cpu")), Path(folder)
    options = ALL_SAVED | {"world_size": 2, "sample_every_epochs": 2}
    for name, config in (
        ("inline", tiny_config(root / "inline", **options)),
        ("beside", _beside(root / "beside", **options)),
        ("other", _beside(root / "other", **options)),
    ):
        outlet = Other(config, dies={1: "SIGKILL"}, tracks=3) if name == "other" else None
        if outlet is not None:
            outlet.may_end.set()
        run_tiny(config, ranks=ranks, tracks=3, outlet=outlet)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(_beside(root / "killed", **options), ranks=ranks, tracks=3, stop_at=7)
    distributed.barrier()
    run_tiny(_beside(root / "killed", **options), ranks=ranks, tracks=3)


def test_many_processes_decide_alike(tmp_path: Path) -> None:
    in_processes(2, tmp_path, _of_two, str(tmp_path))
    options = ALL_SAVED | {"world_size": 2, "sample_every_epochs": 2}
    beside = _beside(tmp_path / "beside", **options)
    for name in ("other", "killed"):
        assert_same_training(_beside(tmp_path / name, **options), beside)
    _assert_same_outcome(beside, tiny_config(tmp_path / "inline", **options))
