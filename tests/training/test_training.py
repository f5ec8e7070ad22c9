"""The training loop: it learns, it can be interrupted anywhere, its decisions are right."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lasaft
from lasaft.checkpoint import load_checkpoint
from lasaft.errors import CheckpointError, StageError
from lasaft.metrics import bss_eval
from lasaft.separation.separator import separate_spectrogram
from pipeline.config.folders import RunFolder
from pipeline.training.loop.loss_network import loss_of
from pipeline.training.loop.randomness import seed_step
from pipeline.training.loop.state_file import load_state
from pipeline.training.loop.validation import validate
from tests.helpers.training import (
    ALONE,
    NoiseData,
    assert_same_training,
    build_stepper,
    run_tiny,
    tiny_config,
    tiny_model,
    training_history,
    training_tensors,
    with_model,
)

SECOND = {
    "block": "tfc_lightsaft_v2",
    "query_listen": True,
    "key_listen": True,
    "control_type": "per_block",
}
RNN = {"block": "tfc_rnn", "norm": "gn", "scale_activation": "leaky_relu"}


def test_the_loss_falls(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, lr=0.01, max_epochs=3, steps_per_epoch=10)
    run_tiny(config, tracks=0)
    losses = [
        r["values"]["train/epoch_loss"] for r in training_history(config) if r["kind"] == "epoch"
    ]
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("options", "stop_at"),
    [
        ({}, 1),
        ({"optimizer": "sgd", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, 4),
        ({"optimizer": "adamw", "lr_schedule": "cosine", "warmup_steps": 5}, 6),
        ({"optimizer": "adagrad", "precision": "16", "auto_lr_schedule": True}, 7),
        ({"ema_decay": 0.9, "sample_every_epochs": 2, "deterministic": True}, 5),
        ({"activation_checkpointing": True, "precision": "bf16", "optimizer": "rmsprop"}, 3),
        ({"weight_decay": 0.1, "ema_decay": 0.9, "min_delta": 0.1, "model": SECOND}, 2),
        ({"activation_checkpointing": True, "optimizer": "sgd", "momentum": 0.9, "model": RNN}, 5),
    ],
)
def test_an_interrupted_run_ends_bit_identical_to_an_undisturbed_one(
    tmp_path: Path, options: dict[str, Any], stop_at: int
) -> None:
    # The smallest mid_epoch_seconds saves after every step.
    options = {"mid_epoch_seconds": 1e-9, "steps_per_epoch": 4} | options
    model = options.pop("model", {})
    undisturbed = with_model(tiny_config(tmp_path / "undisturbed", **options), **model)
    interrupted = with_model(tiny_config(tmp_path / "interrupted", **options), **model)
    whole = run_tiny(undisturbed)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(interrupted, stop_at=stop_at)
    resumed = run_tiny(interrupted)
    assert_same_training(undisturbed, interrupted)
    assert resumed.best_val_loss == whole.best_val_loss
    assert resumed.val_sdr == whole.val_sdr
    hashes = [
        load_checkpoint(RunFolder.of(config).checkpoint).hash
        for config in (undisturbed, interrupted)
    ]
    assert hashes[0] == hashes[1]


def test_a_journal_that_lost_its_end_stays_readable_through_another_kill(tmp_path: Path) -> None:
    options = {"steps_per_epoch": 20, "max_epochs": 3}
    whole, config = tiny_config(tmp_path / "whole", **options), tiny_config(tmp_path, **options)
    run_tiny(whole)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(config, stop_at=22)
    journal = RunFolder.of(config).metrics
    state = load_state(RunFolder.of(config).state)
    assert state is not None
    journal.write_bytes(journal.read_bytes()[: state.progress["history"] - 300])
    with pytest.raises(KeyboardInterrupt):
        run_tiny(config, stop_at=39)  # it has written more than was lost, and saved nothing
    result = run_tiny(config)
    assert any("metrics.jsonl has lost" in note for note in result.notes)
    records, every = training_history(config), training_history(whole)
    assert all(record in every for record in records)
    assert all(records.count(record) == 1 for record in records)
    saved_at = state.progress["step"]
    assert [r for r in records if r["step"] > saved_at] == [
        r for r in every if r["step"] > saved_at
    ]
    ours, theirs = training_tensors(config), training_tensors(whole)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_what_came_after_the_saved_state_is_done_again(tmp_path: Path) -> None:
    # Saves at the ends of epochs alone: an interruption in mid epoch throws steps away, and their
    # records with them.
    undisturbed = tiny_config(tmp_path / "undisturbed", steps_per_epoch=11)
    interrupted = tiny_config(tmp_path / "interrupted", steps_per_epoch=11)
    run_tiny(undisturbed)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(interrupted, stop_at=21)
    assert training_history(interrupted)[-1]["step"] == 20
    run_tiny(interrupted)
    assert_same_training(undisturbed, interrupted)


def test_dropout_draws_differ_between_steps_and_come_again(tmp_path: Path) -> None:
    # Dropout is in the control network of 3 layers: without it this test would show nothing.
    config = tiny_config(tmp_path)
    model = tiny_model(config).train()
    assert any(isinstance(module, torch.nn.Dropout) for module in model.modules())
    with NoiseData(config).batches(0, 0) as batches:
        batch = next(iter(batches))

    def estimate(step: int) -> torch.Tensor:
        seed_step(config.train.seed, step)
        with torch.no_grad():
            return model.estimate(batch.mixture, batch.condition)

    first = estimate(0)
    assert not torch.equal(estimate(1), first)
    assert torch.equal(estimate(0), first)


def test_the_best_few_epochs_and_the_best_are_kept_as_loadable_models(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_epochs=5, save_top_k=2, lr=0.3, steps_per_epoch=3)
    result = run_tiny(config)
    records = [r for r in training_history(config) if r["kind"] == "epoch"]
    ranked = sorted(records, key=lambda r: r["values"]["valid/loss"])
    folder = RunFolder.of(config)
    expected = {f"epoch={record['epoch']:04d}" for record in ranked[:2]}
    assert {path.name for path in folder.checkpoints.iterdir()} == expected
    assert result.best_epoch == ranked[0]["epoch"]
    best = load_checkpoint(folder.checkpoint)
    same = load_checkpoint(folder.checkpoints / f"epoch={result.best_epoch:04d}")
    assert best.hash == same.hash
    assert best.provenance["epoch"] == result.best_epoch
    assert best.provenance["metrics"]["valid/loss"] == result.best_val_loss
    assert not lasaft.load_model(folder.checkpoint).training


def test_a_nan_batch_is_skipped_and_counted(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    result = run_tiny(config, spoil={3: math.nan, 5: math.inf})
    assert result.skipped_steps == 2
    assert result.best_val_loss is not None
    assert all(torch.isfinite(value).all() for value in training_tensors(config).values())
    assert "2 steps" in result.notes[0]


def test_a_skipped_step_leaves_weights_and_statistics_as_they_were(tmp_path: Path) -> None:
    short = tiny_config(tmp_path / "short", steps_per_epoch=3, max_epochs=1)
    long = tiny_config(tmp_path / "long", steps_per_epoch=4, max_epochs=1)
    run_tiny(short)
    run_tiny(long, spoil={3: math.nan})
    weights = {k: v for k, v in training_tensors(short).items() if v.is_floating_point()}
    after = training_tensors(long)
    assert all(torch.equal(value, after[name]) for name, value in weights.items())


def test_nothing_but_nan_ends_with_an_error_that_names_the_step(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps_per_epoch=40, max_epochs=1)
    with pytest.raises(StageError, match=r"loss nan.*step 31 \(epoch 0, batch 31\).*30 steps"):
        run_tiny(config, spoil=dict.fromkeys(range(2, 40), math.nan))


def test_a_longer_run_goes_on_from_the_end_of_a_shorter_one(tmp_path: Path) -> None:
    short, long = tiny_config(tmp_path / "x", max_epochs=1), tiny_config(tmp_path / "x")
    whole = tiny_config(tmp_path / "y")
    run_tiny(short)
    run_tiny(long)
    run_tiny(whole)
    assert_same_training(long, whole)


def test_a_damaged_state_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_epochs=1)
    run_tiny(config)
    file = RunFolder.of(config).state
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"state\.safetensors: .* cannot be read"):
        run_tiny(config)


def test_no_validation_tracks_means_that_the_training_loss_chooses(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    result = run_tiny(config, tracks=0)
    losses = [
        r["values"]["train/epoch_loss"] for r in training_history(config) if r["kind"] == "epoch"
    ]
    assert result.best_val_loss == min(losses)
    assert "no validation tracks" in result.notes[0]


@pytest.mark.parametrize("spec_type", ["complex", "magnitude"])
def test_validation_gives_the_loss_and_bss_evals_sdr_of_whole_tracks(
    tmp_path: Path, spec_type: str
) -> None:
    config = with_model(tiny_config(tmp_path, target_names=["drums"]), spec_type=spec_type)
    model = tiny_model(config)
    data = NoiseData(config, tracks=3)
    result = validate(
        model, loss_of(config.train, "raw_l1", model), data.validation_tracks(), ["drums"], ALONE
    )
    losses, medians = [], []
    for _, track in data.validation_tracks():
        spec = separate_spectrogram(model, track.mixture, ["drums"])
        truth = track.sources[1][None]
        true, ours = (model.spectrogram.istft(s, track.samples).numpy() for s in (truth, spec))
        losses.append(np.abs(true - ours).mean())
        medians.append(np.median(bss_eval(true, ours, sample_rate=1000).sdr))
    assert (result.tracks, model.training) == (3, True)
    # float32 means of the same numbers in another order.
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.sdr == {"drums": pytest.approx(np.median(medians), abs=1e-4)}


def test_micro_batches_take_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    steps = []
    for parts in (1, 2, 4):
        config = tiny_config(
            tmp_path, optimizer="sgd", lr=0.1, batch_size=8, accumulate_grad_batches=parts
        )
        # In eval mode BatchNorm does not look at the batch, so parts of it are the same sums.
        model = tiny_model(config).eval()
        stepper = build_stepper(config, model)
        with NoiseData(config).batches(0, 0) as batches:
            result = stepper.step(next(iter(batches)), 0.1)
        steps.append((result.loss, result.gradient_norm, *model.state_dict().values()))
    for other in steps[1:]:
        for ours, theirs in zip(other, steps[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_clipping_limits_the_gradient(tmp_path: Path) -> None:
    moves = {}
    for limit in (None, 0.01):
        config = tiny_config(tmp_path, optimizer="sgd", lr=1.0, gradient_clip_val=limit)
        model = tiny_model(config)
        before = [value.detach().clone() for value in model.parameters()]
        stepper = build_stepper(config, model)
        with NoiseData(config).batches(0, 0) as batches:
            result = stepper.step(next(iter(batches)), 1.0)
        after = list(model.parameters())
        moves[limit] = float(
            torch.nn.utils.get_total_norm([a - b for a, b in zip(after, before, strict=True)])
        )
        assert result.gradient_norm > 0.01
    # With SGD at lr 1 a step is as long as its gradient.
    assert moves[None] > 0.02
    assert moves[0.01] == pytest.approx(0.01, rel=1e-3)


def test_records_are_whole_lines_of_strict_json(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run_tiny(config, spoil={3: math.nan})
    for line in RunFolder.of(config).metrics.read_text().splitlines():
        record = json.loads(line, parse_constant=pytest.fail)
        kept = {"kind", "step", "epoch", "seconds", "values"}
        assert set(record) == kept | ({"text"} if record["kind"] == "health" else set())
