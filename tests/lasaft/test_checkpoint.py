"""Checkpoints of our own: safetensors and JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import lasaft.checkpoint as checkpoint_module
from lasaft.checkpoint import load_checkpoint, load_model, save_checkpoint
from lasaft.device import find_device
from lasaft.errors import CheckpointError, ConfigError
from lasaft.files import recover_folder
from tests.helpers import ROOT
from tests.helpers.audio import tiny_config, tiny_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_model()
    save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {"run": "test"})
    return tmp_path / "c"


def test_a_saved_network_comes_back_as_it_was(tmp_path: Path) -> None:
    model = tiny_model(sources=("voice", "rest"), sample_rate=22050)
    digest = save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {"epoch": 3})
    found = load_checkpoint(tmp_path / "c")
    assert (found.config, found.provenance, found.hash) == (model.config, {"epoch": 3}, digest)
    again = load_model(str(tmp_path / "c"))
    assert not again.training
    mixture, condition = torch.randn(2, 2, 128 * 191), torch.tensor([1, 0])
    with torch.no_grad():
        assert torch.equal(again(mixture, condition), model(mixture, condition))


def test_a_checkpoint_is_two_files_that_other_tools_read(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "weights.safetensors"]
    content = json.loads((saved / "config.json").read_text())
    assert (content["format"], content["provenance"]) == (1, {"run": "test"})
    assert content["model"]["sources"] == ["vocals", "drums", "bass", "other"]
    assert content["model"]["sample_rate"] == 44100
    weights = safetensors.torch.load_file(saved / "weights.safetensors")
    assert weights.keys() == tiny_model().state_dict().keys()


def test_the_hash_tells_weights_and_settings_apart_and_nothing_else(tmp_path: Path) -> None:
    def digest(seed: int, provenance: dict[str, Any], **options: Any) -> str:
        model = tiny_model(seed, **options)
        return save_checkpoint(tmp_path / "c", model.state_dict(), model.config, provenance)

    first = digest(0, {})
    assert digest(0, {"date": "today"}) == first
    assert len({first, digest(1, {}), digest(0, {}, num_frame=128)}) == 3


def test_the_hash_does_not_change_when_a_later_version_adds_a_field(saved: Path) -> None:
    digest = load_checkpoint(saved).hash
    content = json.loads((saved / "config.json").read_text())
    del content["model"]["gamma_activation"]  # as if written before the field was
    del content["hash"]
    (saved / "config.json").write_text(json.dumps(content))
    older = load_checkpoint(saved)
    assert older.config == tiny_config()
    assert older.hash != digest
    content["hash"] = older.hash
    (saved / "config.json").write_text(json.dumps(content))
    assert load_checkpoint(saved).hash == older.hash


def test_a_failed_save_leaves_the_old_checkpoint_and_no_rest(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_checkpoint(saved).hash
    model = tiny_model(1)

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint_module, "atomic_write_json", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(saved, model.state_dict(), model.config, {})
    assert load_checkpoint(saved).hash == before
    assert [path.name for path in saved.parent.iterdir()] == ["c"]


def test_what_lies_beside_a_checkpoint_can_be_kept(saved: Path) -> None:
    before = load_checkpoint(saved).hash
    (saved / "net.onnx").write_bytes(b"exported")
    (saved / "plots" / "deep").mkdir(parents=True)
    (saved / "plots" / "deep" / "loss.svg").write_text("<svg/>")
    (saved / "nowhere").symlink_to("missing")
    model = tiny_model(1)
    save_checkpoint(saved, model.state_dict(), model.config, {}, keep_others=True)
    assert load_checkpoint(saved).hash != before
    assert (saved / "net.onnx").read_bytes() == b"exported"
    assert (saved / "plots" / "deep" / "loss.svg").read_text() == "<svg/>"
    assert (saved / "nowhere").readlink() == Path("missing")
    assert [path.name for path in saved.parent.iterdir()] == ["c"]


def test_a_folder_with_something_else_is_not_replaced(tmp_path: Path) -> None:
    model = tiny_model()
    for names in (["photo.jpg"], ["config.json"], ["config.json", "weights.safetensors", "src"]):
        folder = tmp_path / str(len(names)) / names[0]
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
        with pytest.raises(CheckpointError, match="something else than a checkpoint"):
            save_checkpoint(folder, model.state_dict(), model.config, {})
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_the_current_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    monkeypatch.chdir(tmp_path)
    for folder in (".", "x/..", ".."):
        with pytest.raises(CheckpointError, match="is the current folder, or around it"):
            save_checkpoint(folder, model.state_dict(), model.config, {})
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_checkpoint_stays_one(tmp_path: Path) -> None:
    model = tiny_model()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        save_checkpoint(tmp_path / "link", model.state_dict(), model.config, {})
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    assert load_checkpoint(tmp_path / "real").config == model.config


def test_who_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {})
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "c").iterdir()}
    assert modes["weights.safetensors"] == modes["config.json"]


def test_a_network_beyond_all_measure_is_refused_at_once(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {})
    file = tmp_path / "c" / "config.json"
    whole = json.loads(file.read_bytes())
    for name in ("internal_channels", "embedding_dim", "dk", "num_tdfs", "n_internal_layers"):
        found = whole | {"model": whole["model"] | {name: 10**12}}
        file.write_text(json.dumps(found))
        with pytest.raises(CheckpointError, match=rf"model\.{name}: got 1000000000000"):
            load_checkpoint(tmp_path / "c")


def test_weights_are_checked_without_the_import_of_torchs_compiler(saved: Path) -> None:
    code = (
        "import sys\n"
        "from lasaft.checkpoint import load_checkpoint\n"
        "load_checkpoint(sys.argv[1])\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(saved)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_shared_and_transposed_weights_can_be_saved(tmp_path: Path) -> None:
    model = tiny_model()
    state = {
        name: value.flip(0).flip(0) if value.dim() < 2 else value.mT.contiguous().mT
        for name, value in model.state_dict().items()
    }
    save_checkpoint(tmp_path / "c", state, model.config, {})
    loaded = load_checkpoint(tmp_path / "c").state_dict
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_what_does_not_fit_is_listed_by_name(tmp_path: Path) -> None:
    model = tiny_model()
    state = dict(model.state_dict())
    names = [name for name in state if state[name].dim() > 1]
    del state[names[0]]
    state["surplus.weight"] = torch.zeros(2)
    state[names[1]] = state[names[1]][..., :1]
    with pytest.raises(CheckpointError, match="do not fit the network") as caught:
        save_checkpoint(tmp_path / "c", state, model.config, {})
    text = str(caught.value)
    assert f"1 missing:\n    {names[0]}" in text
    assert "1 unexpected:\n    surplus.weight" in text
    assert re.search(rf"1 of the wrong shape or type:\n    {re.escape(names[1])}: float \[", text)
    assert not (tmp_path / "c").exists()


def test_weights_of_another_config_are_refused(saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text())
    content["model"]["internal_channels"] = 6
    (saved / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: the weights do not fit"):
        load_checkpoint(saved)


def test_exchanged_weights_are_noticed(saved: Path, tmp_path: Path) -> None:
    model = tiny_model(1)
    save_checkpoint(tmp_path / "d", model.state_dict(), model.config, {})
    shutil.copy(tmp_path / "d" / "weights.safetensors", saved)
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        load_model(saved)


def _edit(**changes: Any) -> Any:
    def edit(path: Path) -> None:
        content = json.loads((path / "config.json").read_text())
        for key, value in changes.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
        (path / "config.json").write_text(json.dumps(content))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"c: there is no such checkpoint folder"),
        (lambda p: (p / "config.json").unlink(), r"config\.json: is missing"),
        (lambda p: (p / "weights.safetensors").unlink(), r"weights\.safetensors: is missing"),
        (lambda p: (p / "config.json").write_text("{"), r"config\.json: is damaged, .* not JSON"),
        (lambda p: (p / "config.json").write_bytes(b"\xff\xfe"), r"config\.json: is damaged"),
        (lambda p: (p / "config.json").write_text("[]"), r"config\.json: format is None"),
        (_edit(format=2), r"config\.json: format is 2, this version of lasaft reads 1"),
        (_edit(extra=1), r"config\.json: has unknown keys: extra"),
        (_edit(provenance=3), r"config\.json: provenance is 3"),
        (_edit(model={"n_blocks": 4}), r"config\.json: .*n_blocks: got 4, allowed: an odd number"),
        (_edit(model={"n_bloks": 3}), r"config\.json: model\.n_bloks: got 3"),
        (_edit(model={"dk": "8"}), r"config\.json: model\.dk: got '8'"),
        (
            lambda p: (p / "weights.safetensors").write_bytes(b"garbage"),
            r"weights\.safetensors: is damaged, it is not safetensors",
        ),
        (
            lambda p: os.truncate(p / "weights.safetensors", 5000),
            r"weights\.safetensors: is damaged",
        ),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_clear_error(saved: Path, damage: Any, message: str) -> None:
    damage(saved)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_a_file_instead_of_a_folder_is_answered_with_advice(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"a checkpoint is a folder, give {saved}"):
        load_model(saved / "weights.safetensors")
    (tmp_path / "epoch=3.ckpt").touch()
    with pytest.raises(CheckpointError, match="lasaft import-checkpoint"):
        load_model(tmp_path / "epoch=3.ckpt")


def test_what_a_crash_left_of_a_linked_checkpoint_is_put_back(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path / "real", model.state_dict(), model.config, {})
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").rename(tmp_path / ".real.old-123")
    recover_folder(tmp_path / "link")
    assert load_checkpoint(tmp_path / "link")


def test_what_systems_drop_into_folders_is_nobodys(tmp_path: Path) -> None:
    model = tiny_model()
    for _ in range(2):
        save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {})
        (tmp_path / "c" / ".DS_Store").touch()


def test_a_checkpoint_is_written_where_the_current_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> Path:
        raise FileNotFoundError(2, "No such file or directory")

    model = tiny_model()
    monkeypatch.setattr(Path, "cwd", gone)
    save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {})
    assert load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:77", "device: got 'cuda:77', but [0-9]+ CUDA"), ("tpu", "allowed: auto, cpu, cuda")],
)
def test_a_device_that_is_not_here_is_one_clear_error(
    saved: Path, device: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(saved, device=device)


@pytest.mark.parametrize(
    ("cuda", "mps", "found"), [(1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_the_device_is_the_best_there_is(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert find_device("auto").type == found
