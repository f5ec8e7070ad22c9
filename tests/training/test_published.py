"""What a finished training has published is mended where it is damaged, and never blessed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lasaft.card import card_of
from lasaft.checkpoint import load_checkpoint, save_checkpoint
from lasaft.errors import StageError
from pipeline.config import RunConfig, TrackingConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.identity import claim, finish
from pipeline.training.loop.published import seal, state_licences, verify
from pipeline.training.loop.records import TrainResult
from tests.helpers.training import run_tiny, tiny_config, tiny_model


@dataclass(frozen=True)
class Finished:
    """A training that has ended, whose last epoch is the best."""

    config: RunConfig
    result: TrainResult

    @property
    def folder(self) -> RunFolder:
        return RunFolder.of(self.config)

    @property
    def places(self) -> tuple[Path, Path]:
        epoch = f"epoch={self.result.best_epoch:04d}"
        return self.folder.checkpoint, self.folder.checkpoints / epoch

    def contents(self) -> dict[str, bytes]:
        root = self.folder.root
        files = (path for place in self.places for path in place.iterdir())
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    def verify(self) -> None:
        verify(self.folder, self.config, self.result)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    config = tiny_config(tmp_path_factory.mktemp("whole"), max_epochs=1)
    claim(RunFolder.of(config), config, "data")
    result = run_tiny(config)
    finish(RunFolder.of(config), config, result, seal(RunFolder.of(config), config, result))
    return Finished(config, result)


@pytest.fixture
def run(whole: Finished, tmp_path: Path) -> Finished:
    shutil.copytree(whole.folder.root, tmp_path, dirs_exist_ok=True)
    return Finished(tiny_config(tmp_path, max_epochs=1), whole.result)


def _flip(path: Path, place: float = 0.9) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_flip, _cut, _empty, Path.unlink])
@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_a_damaged_checkpoint_is_published_again_to_the_same_bytes(
    run: Finished, name: str, damage: Callable[[Path], None], both: bool
) -> None:
    """From its twin among the epochs' checkpoints, or else from the saved state."""
    before = run.contents()
    for place in run.places[: 1 + both]:
        damage(place / name)
    run.verify()
    after = run.contents()
    if both and name == "config.json":  # nothing else holds what stands beside the weights
        after = {k: v for k, v in after.items() if not k.endswith(name)}
        record = load_checkpoint(run.folder.checkpoint).provenance
        assert record["epoch"] == 0
        assert record["step"] == 6
        assert record["data_hash"] == "data"
        assert record["metrics"]["valid/loss"] == run.result.best_val_loss
    assert after.items() <= before.items()
    assert load_checkpoint(run.folder.checkpoint).hash == load_checkpoint(run.places[1]).hash


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_a_changed_record_is_not_taken_for_the_training_s(run: Finished, both: bool) -> None:
    """What stands beside the weights is no part of the checkpoint's hash."""
    before = run.contents()
    for place in run.places[: 1 + both]:
        text = (place / "config.json").read_text()
        (place / "config.json").write_text(text.replace('"step": 6', '"step": 7'))
    for _ in range(2):
        run.verify()
        assert load_checkpoint(run.folder.checkpoint).provenance["step"] == 6
    assert run.contents() == before or both


def test_a_licence_that_is_stated_later_is_no_damage(run: Finished) -> None:
    tracking = TrackingConfig(weights_license="MIT")
    config = run.config.model_copy(update={"tracking": tracking})
    before = run.contents()
    run.verify()
    state_licences(run.folder, run.config)
    assert run.contents() == before
    for _ in range(2):
        state_licences(run.folder, config)
        run.verify()
        found = load_checkpoint(run.folder.checkpoint)
        card = card_of(found.provenance, found.hash)
        assert card["weights_license"] == "MIT"
        assert card["training_hours"] != "not stated"


def test_removed_checkpoints_are_published_again(
    run: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_checkpoint(run.folder.checkpoint).state_dict
    contents = run.contents()
    shutil.rmtree(run.folder.checkpoint)
    run.verify()
    assert run.contents() == contents
    told = capsys.readouterr().err
    assert f"{run.folder.checkpoint} is damaged; it is published again from {run.places[1]}" in told
    shutil.rmtree(run.folder.checkpoint)
    shutil.rmtree(run.folder.checkpoints)
    run.verify()
    after = load_checkpoint(run.folder.checkpoint).state_dict
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_where_everything_is_damaged_one_line_says_what_to_do(run: Finished) -> None:
    before = run.contents()
    for place in run.places:
        _flip(place / "weights.safetensors")
    _flip(run.folder.state, 0.5)
    for _ in range(2):  # it stays so: nothing is taken for good because it was seen
        with pytest.raises(StageError, match=r"/checkpoint: is damaged, and so is .*--rerun train"):
            run.verify()
    (run.folder.checkpoint / "weights.safetensors").write_bytes(
        before["checkpoint/weights.safetensors"]
    )
    run.verify()
    assert run.contents() == before


def test_weights_of_another_epoch_are_never_published_as_the_best(run: Finished) -> None:
    longer = tiny_config(run.folder.root, max_epochs=3, patience=9, save_top_k=1, lr=10.0)
    result = run_tiny(longer)
    finish(run.folder, longer, result, seal(run.folder, longer, result))
    assert result.best_epoch < 2, "the last epoch is the best all the same"
    shutil.rmtree(run.folder.checkpoint)
    shutil.rmtree(run.folder.checkpoints)
    with pytest.raises(StageError, match="the saved state is of another epoch"):
        verify(run.folder, longer, result)


def test_another_whole_checkpoint_is_neither_taken_for_ours_nor_replaced(run: Finished) -> None:
    model = tiny_model(run.config)
    save_checkpoint(run.folder.checkpoint, model.state_dict(), run.config.model, {"epoch": 0})
    theirs = run.contents()
    with pytest.raises(StageError, match="holds another checkpoint than the training has made"):
        run.verify()
    assert run.contents() == theirs


def test_what_somebody_has_put_beside_a_checkpoint_stays(run: Finished) -> None:
    (run.folder.checkpoint / "README.md").write_text("a card")
    run.verify()
    _flip(run.folder.checkpoint / "weights.safetensors")
    run.verify()
    assert (run.folder.checkpoint / "README.md").read_text() == "a card"


@pytest.mark.parametrize("damage", [_flip, _cut, _empty, Path.unlink])
def test_a_changed_journal_is_told_each_time(run: Finished, damage: Callable[[Path], None]) -> None:
    damage(run.folder.metrics)
    for _ in range(2):
        with pytest.raises(StageError, match=r"metrics\.jsonl: is not as the training has left it"):
            run.verify()
