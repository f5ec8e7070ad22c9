"""What the model of scaling counts is what a real run does: its steps, what it validates."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scaling import VALID_SONGS, Machines, predict, validation_windows, work_of
from lasaft.separation import separator
from pipeline.config import RunConfig, TrainConfig
from pipeline.training.loop.worker import run_session
from tests.helpers.shards import make_shards, small_config
from tests.helpers.songs import make_musdb

_OPTIONS = argparse.Namespace(
    windows=4, step_seconds=0.1, tflops=1.0, memory_gbs=1.0, reached=1.0,
    bss_seconds=0.0, sdr_seconds=0.0,
)  # fmt: skip
_MACHINES = Machines(1, 1e9, 1e-5, 1e9, 1e9, 0.0, 1.0)


def _config(root: Path, **train: Any) -> RunConfig:
    songs = make_musdb(root / "songs", test=0, seconds=2.0)
    settings: dict[str, Any] = {"batch_size": 4, "max_epochs": 1} | train
    config = small_config(songs, root, train=TrainConfig(**settings))
    model = config.model.model_copy(update={"internal_channels": 4, "n_internal_layers": 1})
    return config.model_copy(update={"model": model})


@pytest.mark.parametrize("targets", [None, ("bass",)])
def test_steps_and_validation_are_those_of_a_real_run(
    targets: tuple[str, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tmp_path, target_names=targets)
    manifest = make_shards(config)
    separated = 0
    specialise = separator.specialise

    def counting(model: Any, conditions: torch.Tensor) -> Any:
        estimate = specialise(model, conditions)

        def count(windows: torch.Tensor) -> torch.Tensor:
            nonlocal separated
            separated += len(windows) * len(conditions)
            return estimate(windows)

        return count

    monkeypatch.setattr(separator, "specialise", counting)
    result = run_session(config, torch.device("cpu"))
    work = work_of(config, _OPTIONS, [track.frames for track in manifest.split("train")])
    assert predict(work, _MACHINES, 1, 1)["steps"] == result.steps
    valid = sum(validation_windows(config, track.frames) for track in manifest.split("valid"))
    assert separated == valid * len(targets or config.model.sources) > 0


def test_an_epoch_is_its_steps_and_its_validation(tmp_path: Path) -> None:
    work = work_of(_config(tmp_path, steps_per_epoch=50), _OPTIONS, [1000])
    found = predict(work, _MACHINES, 1, 10)
    assert found["steps"] == 50
    validation = VALID_SONGS * work.valid_seconds
    assert found["epoch"] == pytest.approx(50 * 0.1 + validation)
    unvalidated = predict(replace(work, valid_seconds=0.0), _MACHINES, 1, 10)
    gained = float(found["total"]) - float(unvalidated["total"])
    # Of what fills the caches, validation hides as much as it takes.
    assert 9 * validation <= gained <= 10 * validation
