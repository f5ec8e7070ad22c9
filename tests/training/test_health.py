"""What is wrong with a training is said, plainly and once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.folders import RunFolder
from pipeline.data.windows.loader import Batch
from pipeline.training.loop.decisions import Standing
from pipeline.training.loop.health import BAD_STEP_LIMIT, Constancy, Health
from pipeline.training.loop.journal import read_history
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.step import StepResult
from tests.helpers.training import ALONE, Heard, NoiseData, run_tiny, tiny_config


def _health(tmp_path: Path, **train: Any) -> tuple[Health, list[tuple[str, str]]]:
    said: list[tuple[str, str]] = []
    data = NoiseData(tiny_config(tmp_path, **train))
    told = data.config.train
    return Health(lambda kind, text: said.append((kind, text)), data, ALONE, told), said


def _step(loss: float, norm: float = 1.0) -> StepResult:
    return StepResult(loss, norm, math.isfinite(loss + norm))


def test_a_skipped_batch_is_named_once_on_the_screen_and_always_in_the_journal(
    tmp_path: Path,
) -> None:
    config = tiny_config(tmp_path)
    folder = RunFolder.of(config)
    heard = Heard(folder)
    run_tiny(config, spoil={3: math.nan, 7: math.inf}, outlet=heard)
    told = [r["text"] for r in read_history(folder.metrics) if r["kind"] == "health"]
    assert len(told) == 2
    assert "loss nan" in told[0]
    assert "step 3 (epoch 0, batch 3): the step is skipped; windows with bad numbers" in told[0]
    assert "windows [0, 1, 2, 3] of batch 3 in epoch 0" in told[0]
    assert "windows [0, 1, 2, 3] of batch 1 in epoch 1" in told[1]
    assert heard.reports[-1]["notes"] == told[:1]


def test_good_windows_that_overflow_are_told_from_bad_ones(tmp_path: Path) -> None:
    health, said = _health(tmp_path, batch_size=2)
    good = Batch(torch.ones(2, 1, 1, 1), torch.ones(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64))
    health.skipped(_step(math.inf), good, step=5, place=(1, 2), in_a_row=1)
    assert "its windows hold good numbers: windows [0, 1] of batch 2" in said[0][1]
    bad = Batch(good.mixture, good.target * torch.tensor([1, math.nan]).view(2, 1, 1, 1),
                good.condition)  # fmt: skip
    health.skipped(_step(math.nan), bad, step=6, place=(1, 3), in_a_row=2)
    assert "windows with bad numbers: windows [1] of batch 3" in said[1][1]


def test_the_windows_of_all_processes_are_named_by_their_place_in_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, batch_size=8, accumulate_grad_batches=2)
    ranks, said = replace(ALONE, rank=1, world=2), list[str]()
    # The other process's second window is bad too; with micro-batches of 4 it has 0, 1, 4 and 5.
    monkeypatch.setattr(Ranks, "gather", lambda _, mine: [[1], mine])
    health = Health(lambda _, text: said.append(text), NoiseData(config), ranks, config.train)
    mixture = torch.ones(4, 1, 1, 1)
    mixture[2] = math.nan  # of windows 2, 3, 6 and 7
    batch = Batch(mixture, torch.ones(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64))
    health.skipped(_step(math.nan), batch, step=5, place=(1, 2), in_a_row=1)
    assert "windows with bad numbers: windows [1, 6] of batch 2" in said[0]


def test_windows_are_named_where_processes_do_not_divide_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, batch_size=8)
    ranks, said = replace(ALONE, rank=2, world=3), list[str]()
    # The first process has windows 0 to 2, the second 3 to 5, this one 6 and 7.
    monkeypatch.setattr(Ranks, "gather", lambda _, mine: [[], [2], mine])
    health = Health(lambda _, text: said.append(text), NoiseData(config), ranks, config.train)
    mixture = torch.ones(2, 1, 1, 1)
    mixture[0] = math.nan
    batch = Batch(mixture, torch.ones(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64))
    health.skipped(_step(math.nan), batch, step=5, place=(1, 2), in_a_row=1)
    assert "windows with bad numbers: windows [5, 6] of batch 2" in said[0]


def test_what_is_true_of_a_machine_is_found_anew_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    first = run_tiny(tiny_config(tmp_path, max_epochs=1))
    assert any("there is a GPU" in note for note in first.notes)
    monkeypatch.undo()
    assert not any("there is a GPU" in note for note in run_tiny(tiny_config(tmp_path)).notes)


def test_the_search_for_fp16s_scale_is_no_fault(tmp_path: Path) -> None:
    health, said = _health(tmp_path, precision="16")
    batch = next(NoiseData(tiny_config(tmp_path))._windows(0, 0))
    for count in range(1, BAD_STEP_LIMIT):
        health.skipped(_step(0.5, math.inf), batch, step=count, place=(0, 0), in_a_row=count)
        assert bool(said) == (count > 16)
    health.skipped(_step(math.nan), batch, step=0, place=(0, 0), in_a_row=1)
    assert "loss nan" in said[-1][1]


def test_a_constant_loss_is_told(tmp_path: Path) -> None:
    health, said = _health(tmp_path)
    for step in range(200):
        health.step(_step(1 / (step + 1)), rate=0.1)
    assert not said
    for _ in range(100):
        health.step(_step(0.25), rate=0.1)
    assert "training loss has been 0.25 for 100 steps" in said[0][1]
    for loss in (3.0, 2.0, 2.0, 2.0):
        health.epoch(loss, rate=1e-12)
    assert "validation loss has been 2 for 3 epochs" in said[-1][1]
    assert "lr 1e-12" in said[-1][1]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_no_number_is_told(tmp_path: Path, loss: float) -> None:
    health, said = _health(tmp_path, precision="16")
    health.epoch(loss, rate=0.1)
    assert [kind for kind, _ in said] == ["val_loss"]
    assert f"the validation loss is {loss}" in said[0][1]
    assert "of no use" in said[0][1]


def test_numbers_that_are_no_numbers_are_not_constant() -> None:
    constancy = Constancy(2)
    assert not any(constancy.add(math.nan) for _ in range(5))
    assert [constancy.add(value) for value in (1.0, 1.0 + 1e-9, 1.1)] == [False, True, False]


def test_waiting_for_data_and_an_idle_gpu_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    health, said = _health(tmp_path, precision="16")
    health.waiting(29.0, 0.9)
    health.waiting(31.0, 0.19)
    assert not said
    health.waiting(31.0, 0.21)
    assert "21% of the training time was spent waiting for data" in said[0][1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    health.start()
    assert "gpus 1 trains on it" in said[1][1]
    assert "precision 16 on a CPU" in said[2][1]


def test_the_last_word_judges_the_whole_training(tmp_path: Path) -> None:
    health, _ = _health(tmp_path)
    at = Standing()
    at.best_sdr = {"drums": 1.0}
    said = [("data wait", "then"), ("bad step", "once"), ("gpu", "there is a GPU")]
    assert list(health.closing_notes(said, 0.1, 0, at)) == ["there is a GPU"]
    notes = list(health.closing_notes(said, 0.5, 3, Standing()))
    assert notes[0].startswith("50% of the training time")
    assert notes[1] == "3 steps had no finite loss or gradient and were skipped"
    assert notes[3].startswith("there were no validation tracks")
    half, _ = _health(tmp_path, precision="16")
    for bad, steps, normal in ((3, 9, True), (17, 1999, False), (17, 2000, True)):
        at.step = steps
        assert ("to find its scale" in next(half.closing_notes([], 0.0, bad, at))) is normal


def test_what_was_seen_and_said_outlives_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.training.loop.health._CONSTANT", 1e9
    )  # every loss is like the last
    calm = tiny_config(tmp_path / "calm", max_epochs=4)
    disturbed = tiny_config(tmp_path / "disturbed", max_epochs=4, mid_epoch_seconds=1e-9)
    result = run_tiny(calm)
    assert any("nothing is learnt" in note for note in result.notes)
    for stop in (8, 21):
        with pytest.raises(KeyboardInterrupt):
            run_tiny(disturbed, stop_at=stop)
    assert run_tiny(disturbed).notes == result.notes
    told = [
        [r["text"] for r in read_history(RunFolder.of(c).metrics) if r["kind"] == "health"]
        for c in (calm, disturbed)
    ]
    assert told[0] == told[1]
