"""What training does otherwise on a GPU, done on a CPU: the same numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import TrainConfig
from pipeline.training.loop import optimiser, reporter, step
from pipeline.training.loop.optimiser import build_optimizer
from pipeline.training.loop.randomness import repeatable
from tests.helpers.training import (
    NoiseData,
    assert_same_training,
    build_stepper,
    run_tiny,
    tiny_config,
)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimiser, "FUSED_ON", ("cpu",))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_optimisers_take_the_same_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig.model_validate({"optimizer": name, "lr": 0.01})

    def trained() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(5, 4)
        optimizer = build_optimizer(model, config)
        for number in range(5):
            x = torch.randn(8, 5, generator=torch.Generator().manual_seed(number))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return [value.detach() for value in model.parameters()]

    plain = trained()
    monkeypatch.setattr(optimiser, "FUSED_ON", ("cpu",))
    assert build_optimizer(nn.Linear(1, 1), config).defaults["fused"]
    for ours, theirs in zip(trained(), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"precision": "16"}])
@pytest.mark.usefixtures("fused")
def test_steps_that_nobody_waits_for_are_the_same_with_bad_ones_among_them(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil = {3: math.nan, 7: math.inf, 8: math.nan}
    options = {"steps_per_epoch": 13, "gradient_clip_val": 1.0} | options
    late = tiny_config(tmp_path / "late", **options)
    assert build_stepper(late).reads_every == step.READS_EVERY > 1
    late_result = run_tiny(late, spoil=spoil)
    monkeypatch.setattr(step, "READS_EVERY", 1)
    soon = tiny_config(tmp_path / "soon", **options)
    soon_result = run_tiny(soon, spoil=spoil)
    assert late_result.skipped_steps == soon_result.skipped_steps >= len(spoil)
    assert_same_training(late, soon)


@pytest.mark.usefixtures("fused")
def test_a_training_that_nobody_waits_for_goes_on_bit_for_bit(tmp_path: Path) -> None:
    options = {"steps_per_epoch": 12, "mid_epoch_seconds": 1e-9}
    whole, broken = (tiny_config(tmp_path / name, **options) for name in ("whole", "broken"))
    run_tiny(whole, spoil={4: math.nan})
    with pytest.raises(KeyboardInterrupt):
        run_tiny(broken, spoil={4: math.nan}, stop_at=8)
    run_tiny(broken, spoil={4: math.nan})
    assert_same_training(whole, broken)


def test_results_are_waited_for_where_the_host_decides_and_records_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_stepper(tiny_config(tmp_path)).reads_every == 1
    monkeypatch.setattr(optimiser, "FUSED_ON", ("cpu",))
    for options in ({"ema_decay": 0.9}, {"optimizer": "rmsprop"}):
        assert build_stepper(tiny_config(tmp_path, **options)).reads_every == 1
    assert reporter.STEPS_PER_RECORD % step.READS_EVERY == 0


@pytest.mark.parametrize("wanted", [False, True])
def test_float32_is_float32_and_algorithms_are_tried_unless_bits_must_repeat(wanted: bool) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with repeatable(wanted):
            assert torch.backends.cudnn.benchmark is not wanted
            assert torch.backends.cudnn.allow_tf32 is False
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[1])
    assert torch.backends.cudnn.allow_tf32 is before[0]


def test_graphs_are_marked_once_a_step_so_that_micro_batches_keep_their_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, marks = [], []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **mode: modes.append(mode))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    for mode in (True, "blocks", "graphs"):
        config = tiny_config(tmp_path, compile=mode, accumulate_grad_batches=2)
        with NoiseData(config).batches(0, 0) as batches:
            build_stepper(config).step(next(iter(batches)), 0.1)
    blocks = [{"dynamic": False}] * 3
    assert modes == [{"mode": None}, *blocks, {"mode": "reduce-overhead"}]
    assert len(marks) == 1
    assert TrainConfig(compile="graphs").compile == "graphs"
