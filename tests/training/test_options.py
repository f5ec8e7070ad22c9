"""What users expect of training beside the README: each option does what its help says."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import torch
from PIL import Image

import lasaft
from lasaft.authors.importing import import_checkpoint
from lasaft.checkpoint import load_checkpoint
from lasaft.errors import CheckpointError, ConfigError
from pipeline.config import RunConfig, TrainConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.averaging import WeightAverage
from pipeline.training.loop.first_weights import new_model
from pipeline.training.loop.identity import finish, finished
from pipeline.training.loop.journal import read_history
from pipeline.training.loop.loss_network import loss_of
from pipeline.training.loop.optimiser import Plateau
from pipeline.training.loop.randomness import repeatable
from pipeline.training.loop.system_metrics import Machine
from pipeline.training.loop.validation import validate
from tests.helpers.lightning import lightning_content
from tests.helpers.parity import Fixture
from tests.helpers.processes import in_processes
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

ENDINGS = (".flac", "_true.flac", ".png")


def _parts(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}


def test_the_average_of_weights_and_statistics_is_the_formula(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(tmp_path))
    average = WeightAverage(model, 0.5)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for step in range(1, 6):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(1 if value.dtype == torch.int64 else torch.randn_like(value))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            old = expected[name]
            kept = value.is_floating_point()
            expected[name] = decay * old + (1 - decay) * value.double() if kept else value.double()
    for name, value in average.model.state_dict().items():
        # float32 against float64.
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_the_averaged_network_is_the_one_that_is_validated_and_published(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, ema_decay=0.99, max_epochs=1, lr=0.01)
    result = run_tiny(config)
    tensors = training_tensors(config)
    published = load_checkpoint(result.checkpoint).state_dict
    average, newest = _parts(tensors, "average/"), _parts(tensors, "model/")
    assert all(torch.equal(value, average[name]) for name, value in published.items())
    moved = [n for n, v in published.items() if v.is_floating_point() and (v != newest[n]).any()]
    assert any("running_var" in name for name in moved)
    assert any("conv.weight" in name for name in moved)
    model = lasaft.load_model(result.checkpoint)
    tracks = NoiseData(config).validation_tracks()
    loss = loss_of(config.train, config.train.val_loss, model)
    assert validate(model, loss, tracks, config.model.sources, ALONE).loss == result.best_val_loss


@pytest.mark.parametrize("more", [{}, {"accumulate_grad_batches": 2}])
def test_activation_checkpointing_trains_the_same_network(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    # Blocks with BatchNorm in each: statistics that were updated twice a step would differ in
    # the second digit, and their count would be double.
    configs = [
        tiny_config(
            tmp_path / str(kind), activation_checkpointing=kind, optimizer="sgd",
            steps_per_epoch=4, max_epochs=1, **more,
        )
        for kind in (False, True)
    ]  # fmt: skip
    for config in configs:
        run_tiny(config, tracks=0)
    plain, ours = (training_tensors(config) for config in configs)
    assert plain.keys() == ours.keys()
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6, msg=name)


def _peak_bytes(config: RunConfig) -> int:
    """Return how much memory a step holds at once, from the allocator's own events."""
    stepper = build_stepper(config)
    with NoiseData(config).batches(0, 0) as batches:
        batch = next(iter(batches))
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            stepper.step(batch, 0.1)
    profiler: Any = profile.profiler
    held = peak = 0
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_activation_checkpointing_holds_less_memory(tmp_path: Path) -> None:
    plain, ours = (
        _peak_bytes(
            with_model(
                tiny_config(tmp_path, activation_checkpointing=kind, batch_size=8),
                n_internal_layers=8,
            )
        )
        for kind in (False, True)
    )
    # Measured: 0.56. What is left are the blocks' inputs and one block's inside.
    assert ours < 0.65 * plain


def _compiled_config(folder: str, name: str, **options: Any) -> RunConfig:
    """The smallest network that there is: most of its test is the C++ compiler's time."""
    small = {"block": "tfc", "n_blocks": 1, "n_internal_layers": 1, "control_n_layer": 1}
    options = {"optimizer": "sgd", "steps_per_epoch": 4, "mid_epoch_seconds": 1e-9} | options
    return with_model(tiny_config(Path(folder) / name, **options), **small)


def _train_compiled(folder: str) -> None:
    run_tiny(_compiled_config(folder, "compiled", compile=True))
    with pytest.raises(KeyboardInterrupt):
        run_tiny(_compiled_config(folder, "interrupted", compile=True), stop_at=5)
    run_tiny(_compiled_config(folder, "interrupted", compile=True))
    run_tiny(_compiled_config(folder, "blocks", compile="blocks"))


def test_a_compiled_training_is_the_same_and_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    folder = str(tmp_path)
    # In a process of its own: torch cannot compile the shape checks that tests put into the code.
    in_processes(1, tmp_path, _train_compiled, folder)
    names = ("plain", "compiled", "interrupted", "blocks")
    plain, compiled, interrupted, blocks = (_compiled_config(folder, name) for name in names)
    run_tiny(plain)
    assert_same_training(compiled, interrupted)
    theirs = training_tensors(plain)
    for ours in map(training_tensors, (compiled, blocks)):
        assert ours.keys() == theirs.keys()  # no _orig_mod.
        for name, value in theirs.items():
            # Fused kernels round in another order.
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert any(not torch.equal(ours[name], value) for name, value in theirs.items())
    assert lasaft.load_model(RunFolder.of(compiled).checkpoint)


def test_compile_without_a_compiler_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"compile: got True, .*no C\+\+ compiler.*g\+\+"):
        run_tiny(tiny_config(tmp_path, compile=True))


def test_compile_and_activation_checkpointing_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="activation_checkpointing: got True, allowed: only"):
        TrainConfig(compile=True, activation_checkpointing=True)


def test_deterministic_mode_refuses_what_cannot_be_repeated_and_ends_with_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    index, values = torch.tensor([0]), torch.ones(1)
    with repeatable(True), pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(2).put_(index, values)
    torch.zeros(2).put_(index, values)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    seen: list[bool] = []

    def spy(*_: Any) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())

    monkeypatch.setattr("pipeline.training.loop.trainer.seed_step", spy)
    for wanted in (True, False):
        seen.clear()
        options = {"deterministic": wanted, "max_epochs": 1, "steps_per_epoch": 1}
        run_tiny(tiny_config(tmp_path / str(wanted), **options))
        assert seen == [wanted]


def test_time_that_is_up_ends_training_with_a_model_and_more_time_goes_on(tmp_path: Path) -> None:
    options = {"steps_per_epoch": 3, "max_epochs": 2}
    short = tiny_config(tmp_path / "x", time_limit_hours=1e-9, **options)
    result = run_tiny(short)
    assert result.timed_out
    assert (result.steps, result.epochs, result.reason) == (1, 0, "time_limit_hours 1e-09 reached")
    assert lasaft.load_model(result.checkpoint).config == short.model
    folder = RunFolder.of(short)
    finish(folder, short, result, {})
    assert finished(folder, short) == result
    longer = tiny_config(tmp_path / "x", time_limit_hours=1, **options)
    assert finished(folder, longer) is None
    whole = run_tiny(longer)
    undisturbed = tiny_config(tmp_path / "y", **options)
    assert run_tiny(undisturbed).best_val_loss == whole.best_val_loss
    assert not whole.timed_out
    assert_same_training(longer, undisturbed)
    finish(folder, longer, whole, {})
    # It ended by itself, so another limit changes nothing.
    assert finished(folder, short) == whole


def test_a_result_of_before_an_option_was_there_has_its_default(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_epochs=1)
    folder, result = RunFolder.of(config), run_tiny(config)
    finish(folder, config, result, {})
    file = folder.training / "result.json"
    record = json.loads(file.read_text())
    del record["stopping"]["min_delta"], record["sha256"]
    file.write_text(json.dumps(record))
    assert finished(folder, config) == result
    assert finished(folder, tiny_config(tmp_path, max_epochs=1, min_delta=0.1)) is None


def test_time_that_is_up_later_leaves_the_best_model_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, time_limit_hours=1, steps_per_epoch=3, max_epochs=9)
    up = iter([False] * 4 + [True])
    monkeypatch.setattr("pipeline.training.loop.trainer.Trainer._time_is_up", lambda _: next(up))
    result = run_tiny(config)
    assert (result.steps, result.epochs, result.best_epoch) == (5, 1, 0)
    assert load_checkpoint(result.checkpoint).provenance["step"] == 3


def test_the_scale_of_precision_16_is_taken_out_before_clipping(tmp_path: Path) -> None:
    results, skipped = {}, {}
    for precision in ("32", "16", "bf16"):
        config = tiny_config(tmp_path, optimizer="sgd", gradient_clip_val=0.01, precision=precision)
        stepper = build_stepper(config)
        before = [value.detach().clone() for value in stepper.optimizer.param_groups[0]["params"]]
        with NoiseData(config).batches(0, 0) as batches:
            batch = next(iter(batches))
            torch.manual_seed(0)
            result = stepper.step(batch, 1.0)
            while not result.applied:  # fp16's first scale is too large: that changes nothing
                torch.manual_seed(0)
                result = stepper.step(batch, 1.0)
        after = stepper.optimizer.param_groups[0]["params"]
        moved = torch.nn.utils.get_total_norm(
            [a.detach() - b for a, b in zip(after, before, strict=True)]
        )
        # With SGD at lr 1 a step is as long as its clipped gradient.
        assert float(moved) == pytest.approx(0.01, rel=1e-3)
        results[precision] = result.gradient_norm
        skipped[precision] = stepper.bad_steps
    # 11 and 8 bits of mantissa.
    assert results["16"] == pytest.approx(results["32"], rel=0.01)
    assert results["bf16"] == pytest.approx(results["32"], rel=0.1)
    assert len(set(results.values())) == 3
    assert skipped["16"] > 0 == skipped["32"] == skipped["bf16"]


def test_the_plateau_lowers_the_rate_of_the_next_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No epoch is better that is not a thousand times better; a record for every epoch.
    monkeypatch.setattr(Plateau.__init__, "__defaults__", (0,))
    monkeypatch.setattr("pipeline.training.loop.optimiser.PLATEAU_THRESHOLD", 0.999)
    monkeypatch.setattr("pipeline.training.loop.trainer.STEPS_PER_RECORD", 1)
    config = tiny_config(tmp_path, auto_lr_schedule=True, lr=0.3, steps_per_epoch=1, max_epochs=4)
    run_tiny(config)
    records = training_history(config)
    rates = [r["values"]["train/lr"] for r in records if r["kind"] == "step"]
    losses = [r["values"]["valid/loss"] for r in records if r["kind"] == "epoch"]
    plateau, expected = Plateau(), []
    for loss in losses:
        expected.append(0.3 * plateau.factor)
        plateau.update(loss)
    assert rates == expected
    assert len(set(rates)) == 3


def test_patience_ends_training_but_not_before_min_epochs(tmp_path: Path) -> None:
    # So large a rate that epochs get worse.
    options = {"lr": 0.3, "steps_per_epoch": 2, "max_epochs": 20, "patience": 2}
    impatient = run_tiny(tiny_config(tmp_path / "a", **options))
    assert impatient.reason == "no better val_loss for 2 epochs"
    assert impatient.epochs == impatient.best_epoch + 1 + 2
    least = impatient.epochs + 2
    patient = run_tiny(tiny_config(tmp_path / "b", min_epochs=least, **options))
    assert patient.epochs >= least


def test_a_warm_start_takes_the_authors_file(tmp_path: Path) -> None:
    fixture = Fixture("net_film_decoder")
    file = tmp_path / "theirs.ckpt"
    torch.save(lightning_content(fixture), file)
    theirs = import_checkpoint(file, tmp_path / "imported").config
    base = tiny_config(tmp_path, resume_from_checkpoint=str(file))
    # A window of another length is trained on; the network is the same.
    frames = 2 * theirs.num_frame
    config = base.model_copy(update={"model": theirs.model_copy(update={"num_frame": frames})})
    weights = new_model(config, torch.device("cpu")).state_dict()
    imported = load_checkpoint(tmp_path / "imported").state_dict
    assert all(torch.equal(weights[name], value) for name, value in imported.items())


def test_a_warm_start_names_options_and_weights_that_do_not_fit(tmp_path: Path) -> None:
    fixture = Fixture("net_film_decoder")
    file = tmp_path / "theirs.ckpt"
    torch.save(lightning_content(fixture), file)
    config = tiny_config(tmp_path, resume_from_checkpoint=str(file))
    with pytest.raises(CheckpointError) as caught:
        new_model(config, torch.device("cpu"))
    text = str(caught.value)
    assert "theirs.ckpt: its network is another one" in text
    assert "modulation 'film' (this run: 'gpocm')" in text
    assert "missing:" in text
    assert "conditioner.beta.linear.weight: float [4, 32] instead of float [4, 16]" in text
    content = lightning_content(fixture)
    content["hyper_parameters"]["last_activation"] = torch.nn.Tanh()
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"theirs\.ckpt: .*last_activation: got an object"):
        new_model(config, torch.device("cpu"))
    file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"resume_from_checkpoint.*theirs\.ckpt"):
        new_model(config, torch.device("cpu"))


def test_every_epoch_and_the_samples_can_be_seen(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_epochs=4, sample_every_epochs=2, steps_per_epoch=2)
    run_tiny(config)
    records = training_history(config)
    epochs = [record["values"] for record in records if record["kind"] == "epoch"]
    wanted = {"train/epoch_loss", "valid/loss", "valid/vocals/SDR", "valid/drums/SDR"}
    assert len(epochs) == 4
    assert all(wanted <= values.keys() for values in epochs)
    assert all(math.isfinite(values[name]) for values in epochs for name in wanted)
    samples = [record for record in records if record["kind"] == "sample"]
    assert [record["files"] for record in samples] == [
        "samples/epoch=0001", "samples/epoch=0003",
    ]  # fmt: skip
    folder = RunFolder.of(config).training / "samples" / "epoch=0003"
    names = {f"{source}{end}" for source in ("vocals", "drums") for end in ENDINGS}
    assert {path.name for path in folder.iterdir()} == names
    track = next(NoiseData(config).validation_tracks())[1]
    estimate, rate = soundfile.read(folder / "vocals.flac")
    assert rate == 1000
    truth = tiny_model(config).spectrogram.istft(track.sources[0][None], track.samples)[0]
    # The track is shorter than an excerpt, so it is whole; 16 bits keep 96 dB.
    heard, _ = soundfile.read(folder / "vocals_true.flac")
    np.testing.assert_allclose(heard.T, truth.clamp(-1, 1).numpy(), atol=2**-15)
    assert estimate.shape == heard.shape
    with Image.open(folder / "drums.png") as picture:
        assert picture.size == (640, 400)
        picture.verify()


def test_the_machine_is_measured_beside_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.training.loop.reporter.Machine", partial(Machine, every_seconds=0)
    )
    monkeypatch.setattr("pipeline.training.loop.trainer.STEPS_PER_RECORD", 2)
    config = tiny_config(tmp_path, steps_per_epoch=2, max_epochs=2)
    run_tiny(config)
    records = read_history(RunFolder.of(config).metrics)
    measured = [record["values"] for record in records if record["kind"] == "system"]
    assert len(measured) == 2
    for values in measured:
        assert 0 <= values["system/cpu_utilization_percentage"] <= 100
        assert 0 < values["system/system_memory_usage_percentage"] < 100
        resident = psutil.Process().memory_info().rss / 2**20
        assert values["system/process_memory_megabytes"] == pytest.approx(resident, rel=0.5)
    assert not [record for record in training_history(config) if record["kind"] == "system"]
    speed = [record["values"] for record in records if record["kind"] == "speed"][-1]
    music = 4 * 8 * 128 / 1000  # seconds of music in a step: batch, frames, hop, sample rate
    assert speed["speed/music_seconds_per_second"] == pytest.approx(
        music * speed["speed/steps_per_second"]
    )
    assert 0 <= speed["speed/save_share"] < 1


def test_nothing_that_measures_the_machine_ends_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        """Of a driver that knows the number for no part of a GPU, as pynvml's own."""

    def refuse(*_: object) -> None:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**31))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**20)
    found = Machine(torch.device("cuda", 1), every_seconds=0).measure()
    assert found is not None
    assert found["system/gpu_1_memory_usage_percentage"] == 50
    assert not any("utilization" in name for name in found if "gpu" in name)
    for name in ("virtual_memory", "cpu_percent", "Process", "disk_usage", "net_io_counters"):
        monkeypatch.setattr(psutil, name, refuse)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    assert Machine(torch.device("cuda"), every_seconds=0).measure() == {}
