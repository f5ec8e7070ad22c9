"""A whole process of a training on real shards: what it keeps, and what it says of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lasaft
from lasaft.checkpoint import load_checkpoint
from lasaft.config import ModelConfig
from lasaft.errors import CheckpointError, ConfigError, DataError, StageError
from pipeline.config import RunConfig, TrainConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.manifest import read_manifest
from pipeline.data.windows.reader import ShardSet
from pipeline.training.loop import right_to_write
from pipeline.training.loop.identity import finished
from pipeline.training.loop.journal import History, read_history
from pipeline.training.loop.process_data import ShardData
from pipeline.training.loop.worker import run_session
from tests.helpers.shards import make_shards, small_config
from tests.helpers.songs import make_musdb
from tests.helpers.training import ALONE

CPU = torch.device("cpu")
SMALL = {
    "block": "tfc", "n_blocks": 1, "internal_channels": 2, "n_internal_layers": 1,
    "control_n_layer": 1, "modulation": "film",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs and their shards."""
    folder = tmp_path_factory.mktemp("session")
    make_musdb(folder / "songs", train=2, valid=1, test=0, seconds=2.0)
    make_shards(small_config(folder / "songs", folder))
    return folder


def _config(root: Path, name: str, **options: Any) -> RunConfig:
    settings = {"batch_size": 4, "steps_per_epoch": 2, "max_epochs": 2, "seed": 1} | options
    base = small_config(root / "songs", root / name)
    model = ModelConfig.model_validate(base.model.model_dump() | SMALL)
    data = base.data.model_copy(update={"shards_dir": root / "shards"})
    train = TrainConfig.model_validate(settings)
    return base.model_copy(update={"model": model, "data": data, "train": train})


def test_save_weights_only_drops_the_state_at_the_end_but_not_while_more_is_to_come(
    root: Path,
) -> None:
    for weights_only in (False, True):
        config = _config(root, str(weights_only), save_weights_only=weights_only)
        result = run_session(config, CPU)
        assert RunFolder.of(config).state.exists() != weights_only
        assert finished(RunFolder.of(config), config) == result
        assert lasaft.load_model(result.checkpoint).config == config.model
    with pytest.raises(ConfigError, match=r"save_weights_only: .*dropped its state"):
        finished(RunFolder.of(config), _config(root, "True", max_epochs=9))
    short = _config(root, "short", save_weights_only=True, time_limit_hours=1e-9)
    result = run_session(short, CPU)
    assert result.timed_out
    assert RunFolder.of(short).state.exists()
    more = _config(root, "short", save_weights_only=True)
    assert finished(RunFolder.of(more), more) is None
    assert run_session(more, CPU).steps == 4
    assert not RunFolder.of(more).state.exists()


def test_what_lies_where_the_checkpoint_is_to_be_is_named_before_anything_is_trained(
    root: Path,
) -> None:
    config = _config(root, "occupied")
    notes = RunFolder.of(config).checkpoint / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(CheckpointError, match=r"checkpoint: .*\(notes\.txt\).*move that elsewhere"):
        run_session(config, CPU)
    assert notes.read_text() == "mine"
    assert not RunFolder.of(config).state.exists()
    notes.unlink()
    assert run_session(config, CPU).steps == 4


def test_windows_are_named_by_track_and_frames(root: Path) -> None:
    config = _config(root, "any")
    shards = RunFolder.of(config).shards
    data = ShardData(ShardSet(shards, read_manifest(shards)), config, ALONE)
    plan = data._plan(1)
    text = data.describe(1, 1, [3])
    sample = plan.batch_size + 3
    for place, source in enumerate(config.model.sources):
        name = plan.tracks[plan.track[sample, place]].name
        first = plan.start[sample, place]
        assert f"{source} of {name!r} frames {first}-{first + 15}" in text
    assert text.endswith(f"(target {config.model.sources[plan.condition[sample]]})")
    assert data.describe(0, 0, range(8)).endswith("; and 4 more")


def test_a_network_of_sets_trains_on_them_and_is_validated_on_each_source(root: Path) -> None:
    config = _config(root, "sets")
    model = config.model.model_copy(update={"control_vector_type": "multi_hot"})
    drawn = config.data.model_copy(update={"set_sizes": (0.0, 1.0)})
    config = config.model_copy(update={"model": model, "data": drawn})
    shards = RunFolder.of(config).shards
    text = ShardData(ShardSet(shards, read_manifest(shards)), config, ALONE).describe(0, 0, [0])
    assert text.partition(" (target ")[2].count("+") == 1
    result = run_session(config, CPU)
    (first, *_) = [
        record["values"]
        for record in read_history(RunFolder.of(config).metrics)
        if record["kind"] == "epoch"
    ]
    assert {f"valid/{name}/SDR" for name in model.sources} < first.keys()
    assert lasaft.load_model(result.checkpoint).config.takes_sets


def test_an_empty_data_set_is_named(tmp_path: Path) -> None:
    make_musdb(tmp_path / "songs", train=0, valid=1, test=0, seconds=2.0)
    config = small_config(tmp_path / "songs", tmp_path)
    make_shards(config)
    with pytest.raises(DataError, match="no training track"):
        run_session(config, CPU)


def test_what_somebody_puts_beside_the_checkpoint_ends_no_training_and_stays(root: Path) -> None:
    config = _config(root, "exported", max_epochs=1, lr=0.01)
    folder = RunFolder.of(config).checkpoint
    run_session(config, CPU)
    before = load_checkpoint(folder).hash
    (folder / "net.onnx").write_text("exported")
    run_session(_config(root, "exported", max_epochs=4, lr=0.01), CPU)
    assert load_checkpoint(folder).hash != before, "nothing was published after the export"
    assert (folder / "net.onnx").read_text() == "exported"


def test_a_process_that_stands_still_is_shut_out_and_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(right_to_write, "_PREDECESSOR_SECONDS", 0.3)
    config = _config(root, "shut_out")
    folder = RunFolder.of(config)
    with right_to_write.RightToWrite(folder) as frozen:
        frozen.require()
        journal = History(folder.metrics)
        run_session(config, CPU)
        told = read_history(folder.metrics)
        assert [record["step"] for record in told if record["kind"] == "epoch"] == [2, 4]
        journal.append(told[0])
        journal.close()
        assert read_history(folder.metrics) == told
        with pytest.raises(StageError, match="another one has taken the training over"):
            frozen.require()
