"""The parts of a training, each by itself: rates, decisions, state, journal, identity."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lasaft.checkpoint import load_checkpoint, save_checkpoint
from lasaft.errors import CheckpointError, ConfigError, StageError
from pipeline.cluster.resources import share_cpus
from pipeline.config import TrainConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.decisions import Selection
from pipeline.training.loop.energy import Energy
from pipeline.training.loop.first_weights import new_model
from pipeline.training.loop.identity import claim, finish, finished
from pipeline.training.loop.journal import History, make_record, read_history
from pipeline.training.loop.optimiser import Plateau, build_optimizer, decayed, learning_rate
from pipeline.training.loop.randomness import derive_seed
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.state_file import capture_state, load_state, restore_state, write_state
from pipeline.training.loop.synchronised_layers import synchronise_batchnorm
from pipeline.training.train import TrainingLine
from tests.helpers.training import run_tiny, tiny_config, tiny_model, with_model

OPTIMIZERS = ("adam", "adamw", "adagrad", "sgd", "rmsprop")


def _config(name: str, **others: Any) -> TrainConfig:
    return TrainConfig.model_validate({"optimizer": name, **others})


def test_the_plateau_halves_when_torchs_scheduler_does() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = (1 + 0.02 * torch.randn(400, generator=generator)).tolist()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=50)
    plateau, factors = Plateau(), []
    for loss in losses:
        scheduler.step(loss)
        plateau.update(loss)
        assert plateau.factor == optimizer.param_groups[0]["lr"]
        factors.append(plateau.factor)
    assert len(set(factors)) > 3


def test_energy_is_counted_over_turns_of_the_counter_and_interruptions(tmp_path: Path) -> None:
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the package
    counter.parent.mkdir()
    counter.write_text("9000000\n")
    (counter.parent / "max_energy_range_uj").write_text("10000000\n")
    ranks, device = Ranks.current(torch.device("cpu")), torch.device("cpu")
    energy = Energy(device, tmp_path)
    for microjoules in (9_500_000, 2_500_000):
        counter.write_text(f"{microjoules}\n")
        energy.look()
    energy.add_up(ranks)
    later = Energy(device, tmp_path)
    later.restore(energy.state())
    counter.write_text("4500000\n")
    later.add_up(ranks)
    told = {"joules": 6, "energy_of": "CPU packages with all that ran on them"}
    assert later.record() == told
    later.restore(None)  # a state of before
    later.add_up(ranks)
    unmeasured = Energy(device, tmp_path / "none")
    unmeasured.add_up(ranks)
    assert later.record() == unmeasured.record() == {}


def test_the_plateau_knows_that_lower_is_better_below_zero() -> None:
    plateau = Plateau(patience=1)
    for loss in (-10.0, -10.0001, -10.0002, -9.9999):
        plateau.update(loss)
    assert plateau.factor == 0.5


def test_warm_up_rises_linearly_and_the_cosine_ends_near_zero() -> None:
    config = TrainConfig(lr=0.1, warmup_steps=10, lr_schedule="cosine")
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[:10] == pytest.approx([0.01 * n for n in range(1, 11)])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for rate in rates[10:]:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12)
        optimizer.step()
        schedule.step()


def test_the_first_of_equal_losses_is_the_best_and_nan_is_the_worst() -> None:
    config = TrainConfig(save_top_k=2, patience=2, max_epochs=50, min_epochs=5)
    selection = Selection()
    stops = []
    for epoch, loss in enumerate([math.nan, 3.0, 2.0, 2.0, math.nan, 2.5, 1.0, 1.0, 1.0]):
        selection.update(epoch, loss, config)
        selection = Selection.restored(selection.state())
        selection.settle(epoch + 1, config)
        stops.append(selection.stop)
    # Two epochs after the best (2) patience ends, but min_epochs is 5.
    assert stops == [False, False, False, False, True, True, False, False, True]
    assert (selection.best_epoch, selection.best_loss) == (6, 1.0)
    assert selection.kept == [(1.0, 6), (1.0, 7)]


def test_a_smaller_gain_than_min_delta_makes_the_best_epoch_and_no_patience() -> None:
    config = TrainConfig(patience=2, max_epochs=50, min_delta=0.5)
    selection, stops = Selection(), []
    for epoch, loss in enumerate([3.0, 2.0, 1.6, 1.4, 1.3, 1.0]):
        selection.update(epoch, loss, config)
        selection = Selection.restored(selection.state())
        selection.settle(epoch + 1, config)
        stops.append(selection.stop)
    # 1.6 counts against 2.0, 1.4 is better than that by 0.6; 1.0 only by 0.4 than 1.4.
    assert stops == [False, False, False, False, False, True]
    assert (selection.best_epoch, selection.best_loss) == (5, 1.0)


def test_a_state_of_before_min_delta_goes_on_from_its_best_loss() -> None:
    config, selection = TrainConfig(), Selection()
    for epoch, loss in enumerate([3.0, 2.0, 2.5]):
        selection.update(epoch, loss, config)
    state = selection.state()
    del state["mark"]
    assert Selection.restored(state) == selection


def test_weight_decay_is_torchs_and_leaves_norms_biases_and_embeddings_alone() -> None:
    def trained(config: TrainConfig) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = nn.ModuleDict({
            "embedding": nn.Embedding(3, 4), "linear": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)
        })  # fmt: skip
        optimizer = build_optimizer(model, config)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return dict(model.named_parameters())

    for name in OPTIMIZERS:
        plain = trained(_config(name, weight_decay=0.0))
        pulled = trained(_config(name, weight_decay=0.5))
        changed = {key for key in plain if not torch.equal(plain[key], pulled[key])}
        assert changed == {"linear.weight"}, name


@pytest.mark.parametrize("control", ["dense", "per_block"])
def test_only_matrices_and_kernels_of_a_network_are_decayed(tmp_path: Path, control: str) -> None:
    model = tiny_model(with_model(tiny_config(tmp_path), control_type=control))
    pulled = {id(parameter) for parameter in decayed(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in pulled}
    left = dict(model.named_parameters()).keys() - names
    assert {name.rpartition(".")[2] for name in names} <= {"weight", "keys", "original1"}
    endings = ("norm.weight", "bias", "embedding.weight", "original0")
    assert all(name.endswith(endings) for name in left)
    assert not any(name.endswith(endings) for name in names)


def test_momentum_and_betas_are_torchs() -> None:
    def groups(**options: Any) -> dict[str, Any]:
        (group,) = build_optimizer(nn.Linear(2, 2), TrainConfig(**options)).param_groups
        return group

    for name in ("sgd", "rmsprop"):
        assert groups(optimizer=name, momentum=0.9)["momentum"] == 0.9
    for name in ("adam", "adamw"):
        assert groups(optimizer=name, betas=(0.5, 0.9))["betas"] == (0.5, 0.9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_without_options_is_torchs_own(name: str) -> None:
    (group,) = build_optimizer(nn.Linear(2, 2), _config(name)).param_groups
    classes = {"sgd": "SGD", "rmsprop": "RMSprop", "adamw": "AdamW"}
    kind = getattr(torch.optim, classes.get(name, name.title()))
    (usual,) = kind(nn.Linear(2, 2).parameters(), lr=0.001).param_groups
    assert {k: v for k, v in group.items() if k != "params"} == {
        k: v for k, v in usual.items() if k != "params"
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimiser_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    config = _config(name, lr=0.01, weight_decay=0.1, momentum=0.9)

    def trained(steps: int, restored: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        optimizer = build_optimizer(model, config)
        for step in range(steps):
            if restored and step == 3:
                write_state(tmp_path / "s", capture_state({"m": model}, optimizer, {"step": step}))
                model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
                optimizer = build_optimizer(model, config)
                state = load_state(tmp_path / "s")
                assert state is not None
                assert state.progress["step"] == 3
                restore_state(state, {"m": model}, optimizer)
            x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return list(model.state_dict().values())

    for ours, theirs in zip(trained(6, True), trained(6, False), strict=True):
        assert torch.equal(ours, theirs)


def test_a_failed_save_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, TrainConfig(lr=0.1))
    write_state(tmp_path / "state", capture_state({"m": model}, optimizer, {"step": 1}))

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(OSError, match="No space"):
        write_state(tmp_path / "state", capture_state({"m": model}, optimizer, {"step": 2}))
    state = load_state(tmp_path / "state")
    assert state is not None
    assert state.progress["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_state_in_which_one_bit_changed_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    optimizer = build_optimizer(model, TrainConfig(lr=0.1))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "state"
    write_state(path, capture_state({"m": model}, optimizer, {"step": 1, "loss": math.nan}))
    sound = path.read_bytes()
    assert load_state(path) is not None
    for bit in range(0, 8 * len(sound), 61):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"^{path}: .*remove the file|of format"):
            load_state(path)


def test_the_journal_is_cut_back_to_the_saved_position(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [
        make_record("step", step=n, epoch=0, seconds=n / 3, values={"a": 1 / (n + 1)})
        for n in range(4)
    ]
    history = History(path)
    history.append(records[0])
    position = history.position()
    history.append(records[1])
    history.close()
    history = History(path, position)
    history.append(records[2])
    history.close()
    assert read_history(path) == [records[0], records[2]]
    with path.open("a") as file:
        file.write('{"half": ')
    assert read_history(path) == [records[0], records[2]]


def test_a_journal_that_was_cut_goes_on_after_its_last_whole_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [
        make_record("step", step=n, epoch=0, seconds=n / 3, values={"a": 1.0}) for n in range(4)
    ]
    history = History(path)
    for record in records[:3]:
        history.append(record)
    position = history.position()
    history.close()
    path.write_bytes(path.read_bytes()[:-5])
    history = History(path, position)
    assert history.missing == len(json.dumps(records[2])) + 1  # its whole last line
    history.append(records[3])
    history.close()
    assert read_history(path) == [*records[:2], records[3]]


def test_seeds_differ_for_every_step_and_rank_and_are_always_the_same() -> None:
    seeds = {derive_seed(7, "step", step, rank) for step in range(50) for rank in range(4)}
    assert len(seeds) == 200
    # Written down: another value would break the resume of older runs.
    assert derive_seed(7, "step", 0, 0) == derive_seed(7, "step", 0, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_folder_of_another_training_is_refused_with_every_difference(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    folder = RunFolder.of(config)
    claim(folder, config, "data")
    other = with_model(tiny_config(tmp_path, lr=0.5), dk=8)
    claim(folder, other, "other data")  # nothing has been trained: the folder is free
    claim(folder, config, "data")
    run_tiny(config)
    claim(folder, tiny_config(tmp_path, max_epochs=9, num_workers=3, patience=4), "data")
    with pytest.raises(ConfigError) as caught:
        claim(folder, other, "other data")
    lines = [str(problem) for problem in caught.value.problems]
    assert [line.split(":")[0] for line in lines] == ["data hash", "dk", "lr"]
    assert "got 0.5" in lines[2]
    assert "has 0.001" in lines[2]
    cosine = tiny_config(tmp_path / "cosine", lr_schedule="cosine")
    claim(RunFolder.of(cosine), cosine, "data")
    run_tiny(cosine)
    longer = tiny_config(tmp_path / "cosine", lr_schedule="cosine", max_epochs=9)
    with pytest.raises(ConfigError, match="max_epochs: got 9"):
        claim(RunFolder.of(longer), longer, "data")


def test_training_can_start_from_a_checkpoint_and_refuses_another_network(tmp_path: Path) -> None:
    first = tiny_config(tmp_path / "first", max_epochs=1)
    result = run_tiny(first)
    warm = tiny_config(tmp_path / "warm", resume_from_checkpoint=str(result.checkpoint))
    device = torch.device("cpu")
    fresh = new_model(first, device)
    started = new_model(warm, device)
    name = "network.first.conv.weight"
    assert not torch.equal(fresh.state_dict()[name], started.state_dict()[name])
    with pytest.raises(CheckpointError, match=r"resume_from_checkpoint .* dk 4"):
        new_model(with_model(warm, dk=8), device)


@pytest.mark.parametrize(
    ("nodes", "processes", "share"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([2], 4, 0.5),
        ([2, 2, 2], 2, 2),
        ([4, 8], 3, 4),
        ([1, 1], 3, 0.6666),
    ],
)
def test_cpus_are_shared_so_that_every_process_fits_on_a_node(
    nodes: list[float], processes: int, share: float
) -> None:
    assert share_cpus([{"CPU": cpus} for cpus in nodes], processes) == share


def test_nodes_without_the_gpu_that_a_process_needs_lend_it_no_cpus() -> None:
    nodes = [{"CPU": 64.0}, {"CPU": 14.0, "GPU": 1.0}]
    assert share_cpus(nodes, 1, {"GPU": 1.0}) == 14.0


def test_a_training_goes_on_without_the_checkpoint_that_it_began_with(tmp_path: Path) -> None:
    first = tiny_config(tmp_path / "first")
    run_tiny(first)
    start = RunFolder.of(first).checkpoint
    config = tiny_config(tmp_path / "second", resume_from_checkpoint=str(start))
    folder = RunFolder.of(config)
    claim(folder, config, "data")
    begun = new_model(config, torch.device("cpu")).state_dict()
    assert all(torch.equal(begun[k], v) for k, v in load_checkpoint(start).state_dict.items())
    run_tiny(config)
    elsewhere = start.rename(tmp_path / "elsewhere")
    claim(folder, tiny_config(tmp_path / "second", resume_from_checkpoint=str(elsewhere)), "data")
    save_checkpoint(start, tiny_model(config).state_dict(), config.model, {})
    refused = r"checkpoint: got '.* \(\w{12}\)'.*allowed: that value, none, or another output_dir"
    with pytest.raises(ConfigError, match=refused):
        claim(folder, config, "data")
    shutil.rmtree(start)
    assert new_model(config, torch.device("cpu")).config == config.model
    claim(folder, config, "data")
    claim(folder, tiny_config(tmp_path / "second"), "data")
    with pytest.raises(ConfigError, match="resume_from_checkpoint: got"):
        claim(folder, tiny_config(tmp_path / "second", resume_from_checkpoint="other"), "data")


def test_a_result_that_was_changed_is_named(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    folder = RunFolder.of(config)
    result = run_tiny(config)
    finish(folder, config, result, {})
    assert finished(folder, config) == result
    file = folder.training / "result.json"
    for before, after in (('"steps": 12', '"steps": 13'), ('"hashes": {}', '"hashes": {"x": 1}')):
        content = file.read_text()
        assert before in content
        file.write_text(content.replace(before, after))
        with pytest.raises(StageError, match=r"result\.json: is damaged .*; remove it"):
            finished(folder, config)
        file.write_text(content)


@pytest.mark.parametrize("content", ['{"stop', "null", "[]"])
@pytest.mark.parametrize("name", ["identity.json", "result.json"])
def test_a_damaged_record_is_named(tmp_path: Path, name: str, content: str) -> None:
    config = tiny_config(tmp_path)
    folder = RunFolder.of(config)
    claim(folder, config, "data")
    result = run_tiny(config)
    finish(folder, config, result, {})
    (folder.training / name).write_text(content)
    with pytest.raises(StageError, match=rf"{name}: is damaged .*; remove it"):
        claim(folder, config, "data")
        finished(folder, config)
    if name == "result.json":
        folder.state.unlink()
        with pytest.raises(StageError, match=r"save_weights_only.*give another output_dir"):
            finished(folder, config)


def test_a_folder_that_was_moved_tells_where_its_checkpoint_is_now(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "here")
    finish(RunFolder.of(config), config, run_tiny(config), {})
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tiny_config(tmp_path / "there")
    result = finished(RunFolder.of(moved), moved)
    assert result is not None
    assert result.checkpoint == tmp_path / "there" / "checkpoint"


def test_a_training_that_ray_starts_again_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = {
        "phase": "validate", "epoch": 0, "steps_per_epoch": 9, "step": 7, "process": "a 1",
        "notes": [],
    }  # fmt: skip
    line = TrainingLine(tiny_config(tmp_path).train)
    line(found)
    line(found | {"step": 5, "process": "a 2"})
    line.close()
    assert capfd.readouterr().err.count("training: started again, it is at step 5\n") == 1


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_16_bit_gradients_pass_a_synchronised_batchnorm_as_they_pass_torchs(
    kind: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(4, 8, 32, 64, generator=generator, dtype=torch.float64)
    gradient = 0.01 * (1 + torch.randn(4, 8, 32, 64, generator=generator, dtype=torch.float64))
    weight = torch.randn(8, 8, 3, 3, generator=generator, dtype=torch.float64) / 8

    def weight_gradient(norm: nn.Module, kind: torch.dtype) -> torch.Tensor:
        mine = weight.detach().to(kind).requires_grad_()
        norm(nn.functional.conv2d(x.to(kind), mine)).backward(gradient[..., 2:, 2:].to(kind))
        assert mine.grad is not None
        return mine.grad.double()

    exact = weight_gradient(nn.BatchNorm2d(8).double(), torch.float64)
    torchs = weight_gradient(nn.BatchNorm2d(8), kind) - exact
    synced = nn.Sequential(nn.BatchNorm2d(8))
    synchronise_batchnorm(synced)
    ours = weight_gradient(synced, kind) - exact
    assert ours.norm() < 1.2 * torchs.norm()
