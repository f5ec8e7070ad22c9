"""Many processes train as one: the same numbers, one decision, nothing left waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import distributed, nn

from pipeline.config import RunConfig
from pipeline.config.train import LossName
from pipeline.data.windows.loader import Batch
from pipeline.training.loop.loss_network import loss_of
from pipeline.training.loop.randomness import seed_step
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.step import Stepper
from pipeline.training.loop.synchronised_layers import synchronise_batchnorm
from pipeline.training.loop.validation import validate
from tests.helpers.processes import in_processes
from tests.helpers.training import (
    ALONE,
    NoiseData,
    build_stepper,
    run_tiny,
    tiny_config,
    tiny_model,
    training_history,
    training_tensors,
)

CPU = torch.device("cpu")


# Batches that three processes do not divide: shares of 2, 1, 1, of 3, 3, 2, and twice 2, 1, 1.
THREE: dict[str, dict[str, Any]] = {
    "small": {"batch_size": 4},
    "large": {"batch_size": 8},
    "parts": {"batch_size": 8, "accumulate_grad_batches": 2},
}
RAW_AND_SPEC_PARTS = {
    "loss_raw_scale": 1.0, "loss_raw_mode": "raw_l1",
    "loss_spec_scale": 0.5, "loss_spec_mode": "spec_mse",
}  # fmt: skip


def _three(folder: Path, **train: Any) -> RunConfig:
    options = {"batch_size": 8, "steps_per_epoch": 10, "optimizer": "sgd", "lr": 0.005}
    return tiny_config(folder, **options | {"world_size": 3, "sync_batchnorm": True} | train)


def _config(folder: Path, **train: Any) -> RunConfig:
    """With Dropout and BatchNorm in the control network, as the paper's networks have them."""
    return tiny_config(folder, batch_size=8, steps_per_epoch=10, optimizer="sgd", lr=0.005, **train)


def _everything(folder: str) -> None:
    """Run in two processes at once all that the tests of this file look at."""
    ranks = Ranks.current(CPU)
    _check_ranks(ranks)
    _check_batchnorm(ranks)
    root = Path(folder)
    two = _config(root / "two", world_size=2, sync_batchnorm=True)
    run_tiny(two, ranks=ranks)
    again = _config(
        root / "again", world_size=2, sync_batchnorm=True, activation_checkpointing=True
    )
    run_tiny(again, ranks=ranks)
    adam = {"world_size": 2, "mid_epoch_seconds": 1e-9, "steps_per_epoch": 4, "ema_decay": 0.9}
    run_tiny(tiny_config(root / "undisturbed", **adam), ranks=ranks)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tiny_config(root / "interrupted", **adam), ranks=ranks, stop_at=6)
    distributed.barrier()
    run_tiny(tiny_config(root / "interrupted", **adam), ranks=ranks)
    spoil = {2: float("nan")} if ranks.rank == 1 else None
    result = run_tiny(
        tiny_config(root / "nan", world_size=2, max_epochs=1), ranks=ranks, spoil=spoil
    )
    assert result.skipped_steps == 1
    _check_validation(ranks, two)
    _check_micro_batches(ranks, root)
    for optimizer in ("adamw", "adagrad", "rmsprop"):
        _check_exactly(ranks, root, steps_per_epoch=5, optimizer=optimizer)
    _check_exactly(ranks, root, steps_per_epoch=20, optimizer="adam", accumulate_grad_batches=2)
    _check_unused(ranks, root)
    short = tiny_config(root / "short", world_size=2, time_limit_hours=1e-9)
    result = run_tiny(short, ranks=ranks)
    assert (result.steps, result.timed_out) == (1, True)


def _check_micro_batches(ranks: Ranks, root: Path) -> None:
    """Compare with one process: clipped gradients of micro-batches that are added up once."""
    options = {"optimizer": "sgd", "gradient_clip_val": 0.05, "batch_size": 8}
    two = tiny_config(root, accumulate_grad_batches=2, **options)
    results = []
    for config, each in ((tiny_config(root, **options), ALONE), (two, ranks)):
        # In eval mode BatchNorm does not look at the batch, so parts of it are the same sums.
        model = tiny_model(config).eval()
        stepper = build_stepper(config, model, each)
        with NoiseData(config, each).batches(0, 0) as batches:
            steps = [stepper.step(batch, 1.0) for batch in batches]
        assert min(step.gradient_norm for step in steps) > 0.05
        results.append([*model.state_dict().values(), *(torch.tensor(s.loss) for s in steps)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def _everything_of_three(folder: str) -> None:
    """Run in three processes, which do not divide a batch, what must equal one process."""
    ranks, root = Ranks.current(CPU), Path(folder)
    for name, options in THREE.items():
        run_tiny(_three(root / name, **options), ranks=ranks)
    _check_micro_batches(ranks, root)
    adam = {"optimizer": "adam", "sync_batchnorm": True, "world_size": 3}
    for options in THREE.values():
        _check_exactly(ranks, root, steps_per_epoch=5, **adam, **options)
    for loss in get_args(LossName):
        parts = RAW_AND_SPEC_PARTS if loss == "raw_and_spec" else {}
        _check_exactly(ranks, root, steps_per_epoch=2, train_loss=loss, **adam, **parts)
    config = _three(root / "nan", batch_size=8, max_epochs=1)
    spoil = {2: float("nan")} if ranks.rank == 2 else None
    assert run_tiny(config, ranks=ranks, spoil=spoil).skipped_steps == 1


def _check_exactly(ranks: Ranks, root: Path, **options: Any) -> None:
    """Compare some steps with one process in float64.

    In float32 the gradient of a bias before a BatchNorm is a rounding error, of which these
    optimisers take the sign: no two ways of adding it up agree.
    """
    options = {"batch_size": 8, "lr": 0.002, "gradient_clip_val": 0.5} | options
    config = tiny_config(root, **options)
    train = config.train
    results, told = [], []
    # The others wait: what all processes have after a step is the same.
    for each in (ALONE, ranks) if ranks.is_first else (ranks,):
        model = tiny_model(config).double()
        if each is ranks:
            synchronise_batchnorm(model)
        stepper = Stepper(model, loss_of(train, train.train_loss, model), train, each)
        with (
            NoiseData(config, each).batches(0, 0) as batches,
            pytest.MonkeyPatch.context() as patch,
        ):
            # The loss too, which calls this to leave 16 bits.
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            for step, batch in enumerate(batches):
                seed_step(train.seed, step)
                wide = Batch(batch.mixture.double(), batch.target.double(), batch.condition)
                result = stepper.step(wide, train.lr)
                assert result.applied
                told.append((result.loss, result.gradient_norm))
        results.append(model.state_dict())
    if not ranks.is_first:
        return
    steps = len(told) // 2
    assert told[steps:] == [pytest.approx(pair, rel=1e-5) for pair in told[:steps]]
    alone, together = results
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-6, atol=1e-7, msg=name)


def _check_unused(ranks: Ranks, root: Path) -> None:
    """A parameter that the loss of one rank, or of both, does not reach stops nobody."""
    config = tiny_config(root)
    model = tiny_model(config)
    model.network.spare = nn.Linear(2, 2)
    sometimes = nn.Parameter(torch.ones(()))
    model.network.register_parameter("sometimes", sometimes)
    plain = loss_of(config.train, "spec_mse", model)

    def loss(*specs: torch.Tensor) -> torch.Tensor:
        return plain(*specs) * (sometimes if ranks.rank else 1.0)

    stepper = Stepper(model, loss, config.train, ranks)
    with NoiseData(config, ranks).batches(0, 0) as batches:
        assert all(stepper.step(batch, 0.1).applied for batch in batches)
    assert model.network.spare.weight.grad is None
    assert float(sometimes.detach()) < 1
    assert len(set(ranks.gather(float(sometimes.detach())))) == 1


def _check_validation(ranks: Ranks, config: RunConfig) -> None:
    """Compare with one process on all tracks: three for two ranks, so one has more work."""
    model = tiny_model(config)

    def distance(estimate: torch.Tensor, target: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return (estimate - target).abs().mean()

    alone, together = (
        validate(
            model, distance, NoiseData(config, each, tracks=3).validation_tracks(), ["drums"], each
        )
        for each in (ALONE, ranks)
    )
    assert together == alone
    assert together.tracks == 3


def _check_ranks(ranks: Ranks) -> None:
    assert float(ranks.mean(torch.tensor(float(ranks.rank)))) == 0.5
    assert ranks.gather(ranks.rank) == [0, 1]
    assert ranks.agree({"rank": ranks.rank}) == {"rank": 0}


def _check_batchnorm(ranks: Ranks) -> None:
    """Compare with torch's BatchNorm on the batches of both processes together."""
    generator = torch.Generator().manual_seed(3)
    # Far from zero: a variance as a difference of float32 squares would have lost 3 digits.
    whole = torch.randn(6, 5, 4, 3, generator=generator) + 30
    weight = torch.randn(6, 5, 4, 3, generator=generator)
    reference, ours = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    synchronise_batchnorm(ours)
    mine = slice(0, 2) if ranks.rank == 0 else slice(2, 6)  # unequal parts
    x, part = whole.clone().requires_grad_(), whole[mine].clone().requires_grad_()
    (reference(x) * weight).sum().backward()
    output = ours(part)
    (output * weight[mine]).sum().backward()
    assert x.grad is not None
    assert part.grad is not None
    # float32 arithmetic on values around 1.
    torch.testing.assert_close(output, reference(whole)[mine], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part.grad, x.grad[mine], rtol=1e-4, atol=1e-5)
    again = nn.BatchNorm2d(5)
    again(whole)
    torch.testing.assert_close(ours.running_mean, again.running_mean)
    torch.testing.assert_close(ours.running_var, again.running_var)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    in_processes(2, folder, _everything, str(folder))
    return folder


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    in_processes(3, folder, _everything_of_three, str(folder))
    return folder


@pytest.mark.parametrize("name", THREE)
def test_ranks_that_do_not_divide_the_batch_train_as_one(
    three_ranks: Path, tmp_path: Path, name: str
) -> None:
    one, three = _three(tmp_path, **THREE[name]), _three(three_ranks / name)
    run_tiny(one)
    ours, theirs = training_tensors(three), training_tensors(one)
    for tensor, value in theirs.items():
        # 20 steps of float32 sums in another order.
        torch.testing.assert_close(ours[tensor], value, rtol=1e-5, atol=1e-5, msg=tensor)
    for mine, its in zip(training_history(three), training_history(one), strict=True):
        assert mine["values"] == pytest.approx(its["values"], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("sync_batchnorm", "tolerance"), [(True, 2e-6), (False, 1e-5)])
def test_two_ranks_train_the_same_weights_as_one(
    two_ranks: Path, tmp_path: Path, sync_batchnorm: bool, tolerance: float
) -> None:
    """One process with the two ranks' BatchNorm, and with torch's."""
    one = _config(tmp_path, sync_batchnorm=sync_batchnorm)
    run_tiny(one)
    ours, theirs = training_tensors(_config(two_ranks / "two")), training_tensors(one)
    for name, value in theirs.items():
        # 20 steps of float32 sums in another order.
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=name)


def test_activation_checkpointing_of_two_ranks_trains_the_same_weights(two_ranks: Path) -> None:
    ours, theirs = (training_tensors(_config(two_ranks / name)) for name in ("again", "two"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_two_ranks_report_the_same_history_as_one(two_ranks: Path, tmp_path: Path) -> None:
    one = _config(tmp_path)
    run_tiny(one)
    pairs = list(
        zip(training_history(_config(two_ranks / "two")), training_history(one), strict=True)
    )
    assert pairs
    for ours, theirs in pairs:
        assert ours["values"] == pytest.approx(theirs["values"], rel=1e-4, abs=1e-4)


def test_an_interrupted_run_of_two_ranks_ends_bit_identical(two_ranks: Path) -> None:
    undisturbed, interrupted = (
        tiny_config(two_ranks / name) for name in ("undisturbed", "interrupted")
    )
    ours, theirs = training_tensors(interrupted), training_tensors(undisturbed)
    assert any(name.startswith("average/") for name in ours)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert training_history(interrupted) == training_history(undisturbed)


def test_a_nan_on_one_rank_skips_the_step_on_all(two_ranks: Path) -> None:
    weights = training_tensors(tiny_config(two_ranks / "nan"))
    assert all(torch.isfinite(value).all() for value in weights.values())
