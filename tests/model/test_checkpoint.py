"""Checkpoints of our own, and the safe import of the authors'."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import lasaft.checkpoint as checkpoint_module
from lasaft.authors_checkpoint import read_authors_checkpoint
from lasaft.checkpoint import load_checkpoint, load_model, save_checkpoint
from lasaft.errors import CheckpointError, ConfigError
from lasaft.importing import import_checkpoint
from tests.helpers.audio import tiny_config, tiny_model
from tests.helpers.lightning import (
    Running,
    lightning_content,
    pickled,
    save_old_lightning,
    save_raw_pickle,
)
from tests.helpers.parity import Fixture, relative_error

NETWORK = "net_gpocm_lasaft_decoder"


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture(NETWORK)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_model()
    save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {"run": "test"})
    return tmp_path / "c"


# --- our own format -----------------------------------------------------------------------------


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


def test_a_folder_with_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    model = tiny_model()
    with pytest.raises(CheckpointError, match="holds no checkpoint, so it is left alone"):
        save_checkpoint(tmp_path, model.state_dict(), model.config, {})
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


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


# --- the authors' files -------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_an_old_lightning_file_is_imported_without_its_classes(
    tmp_path: Path, fixture: Fixture, legacy: bool
) -> None:
    file = save_old_lightning(tmp_path / "epoch=3.ckpt", fixture, legacy=legacy)
    digest, config, left_out = import_checkpoint(file, tmp_path / "c")
    found = load_checkpoint(tmp_path / "c")
    assert (found.hash, found.config) == (digest, config)
    assert left_out == ["criterion", "optimizer_class", "options", "train_loss", "where"]
    assert found.provenance["imported_from"] == "epoch=3.ckpt"
    assert found.provenance["file"]["global_step"] == 1234
    assert found.provenance["hyper_parameters"]["seed"] == 2020
    model = load_model(tmp_path / "c")
    with torch.no_grad():
        ours = model(fixture.waves("wave"), fixture["condition"])
    # The reference's own waveform; float32 against float32.
    assert relative_error(ours, fixture.waves("separated")) < 1e-5


def test_every_tensor_equals_what_torch_itself_reads(tmp_path: Path, fixture: Fixture) -> None:
    base = torch.arange(24.0)
    state = {
        **fixture.state,
        "view": base.view(4, 6)[1:, 2:5],
        "transposed": base.view(4, 6).T,
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(7).bfloat16(),
        "flags": torch.tensor([True, False]),
        "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    for legacy in (False, True):
        file = tmp_path / f"{legacy}.ckpt"
        content = lightning_content(fixture, state_dict=state)
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        ours = read_authors_checkpoint(file).state_dict
        assert list(ours) == list(state)
        for name, value in state.items():
            assert ours[name].dtype == value.dtype
            assert torch.equal(ours[name], value)


def test_source_names_can_be_given(tmp_path: Path, fixture: Fixture) -> None:
    torch.save(lightning_content(fixture), tmp_path / "a.ckpt")
    names = ["voice", "kit", "low", "rest"]
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c", names)
    assert load_model(tmp_path / "c").config.sources == tuple(names)
    with pytest.raises(ConfigError, match=r"sources: got 1 .*made for 4"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c", ["voice"])
    with pytest.raises(ConfigError, match="more than once"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c", ["a", "a", "b", "c"])


def test_weights_that_do_not_fit_are_listed_by_the_authors_names(
    tmp_path: Path, fixture: Fixture
) -> None:
    state = dict(fixture.state)
    del state["spec2spec.last_conv.0.weight"]
    state["spec2spec.surplus"] = torch.zeros(1)
    state["spec2spec.embedding.weight"] = torch.zeros(4, 99)
    torch.save(lightning_content(fixture, state_dict=state), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt: the weights do not fit") as caught:
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c")
    for line in (
        "missing: last_conv.0.weight",
        "unexpected: surplus",
        "embedding.weight is [4, 99]",
    ):
        assert line in str(caught.value)
    assert not (tmp_path / "c").exists()


MALICE = {
    "a command": (os.system, "touch {}"),
    "a process": (subprocess.Popen, ["touch", "{}"]),
    "eval": (builtins.eval, "open('{}', 'w')"),
    "exec": (builtins.exec, "open('{}', 'w')"),
    "open": (builtins.open, "{}", "w"),
    "getattr": (builtins.getattr, "", "join"),
    "removing": (shutil.rmtree, "{}"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", list(MALICE))
def test_a_malicious_pickle_is_refused_and_does_not_run(
    tmp_path: Path, kind: str, protocol: int
) -> None:
    trace = tmp_path / "trace"
    function, *arguments = MALICE[kind]
    filled = [
        [part.format(trace) for part in a] if isinstance(a, list) else str(a).format(trace)
        for a in arguments
    ]
    content = {"state_dict": {}, "hyper_parameters": {"seed": Running(function, *filled)}}
    file = save_raw_pickle(tmp_path / "evil.ckpt", pickled(content, protocol))
    name = rf"{function.__name__}"
    with pytest.raises(CheckpointError, match=rf"evil\.ckpt: refused: it asks for .*\.{name}"):
        import_checkpoint(file, tmp_path / "c")
    assert not trace.exists()


def test_a_malicious_file_in_the_format_before_zip_is_refused(
    tmp_path: Path, fixture: Fixture
) -> None:
    trace = tmp_path / "trace"
    content = lightning_content(fixture, callbacks={"x": Running(os.system, f"touch {trace}")})
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"refused: it asks for \w+\.system"):
        read_authors_checkpoint(tmp_path / "a.ckpt")
    assert not trace.exists()


def test_functions_of_other_packages_are_never_called(tmp_path: Path, fixture: Fixture) -> None:
    call = Running(np.save, str(tmp_path / "trace.npy"), 1)
    content = lightning_content(fixture, extra=call)
    content["hyper_parameters"]["odd"] = call
    torch.save(content, tmp_path / "a.ckpt")
    found = read_authors_checkpoint(tmp_path / "a.ckpt")
    assert found.left_out == ["odd"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_state_given_to_a_torch_function_changes_nothing(tmp_path: Path) -> None:
    # BUILD on a global would set attributes of the real function in a common unpickler.
    data = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb"
        b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb."
    )
    with pytest.raises(CheckpointError, match="no state_dict"):
        read_authors_checkpoint(save_raw_pickle(tmp_path / "a.ckpt", data))
    assert pickle.loads(pickle.dumps(torch.ones(2))).tolist() == [1, 1]
    assert not hasattr(OrderedDict, "a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"(S'x'\nios\nsystem\n.", "instruction INST"),
        (b"(cmymodule\nThing\no.", "instruction OBJ"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"Pname\n.", "instruction PERSID"),
        (b"\x80\x02]K\x01R.", "is damaged"),
        (b".", "is damaged"),
        (b"(.", "no state_dict"),
        (b"", "is damaged"),
        (b"\x80\x02}q\x00X\xff\xff\xff\x7fabc", "is damaged"),
        (b"K\x01}s.", "is damaged"),
    ],
)
def test_odd_pickles_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_authors_checkpoint(save_raw_pickle(tmp_path / "a.ckpt", data))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_a_file_cut_short_anywhere_is_one_clear_error(
    tmp_path: Path, fixture: Fixture, legacy: bool
) -> None:
    whole = save_old_lightning(tmp_path / "a.ckpt", fixture, legacy=legacy).read_bytes()
    places = [0, 1, 10, *range(100, len(whole), len(whole) // 40), len(whole) - 1]
    for place in places:
        (tmp_path / "cut.ckpt").write_bytes(whole[:place])
        with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
            read_authors_checkpoint(tmp_path / "cut.ckpt")


def test_changed_bytes_of_the_pickle_never_get_past_the_reader(
    tmp_path: Path, fixture: Fixture
) -> None:
    file = save_old_lightning(tmp_path / "a.ckpt", fixture)
    with zipfile.ZipFile(file) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        good = archive.read(entry)
    generator = random.Random(0)
    refused = 0
    for _ in range(200):
        bad = bytearray(good)
        for _ in range(generator.randint(1, 4)):
            bad[generator.randrange(len(bad))] = generator.randrange(256)
        try:
            read_authors_checkpoint(save_raw_pickle(tmp_path / "bad.ckpt", bytes(bad)))
        except CheckpointError:
            refused += 1  # any other exception fails the test
    assert refused > 100


def test_tensors_beyond_their_storage_and_packed_data_are_refused(
    tmp_path: Path, fixture: Fixture
) -> None:
    torch.save(lightning_content(fixture), tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:-4] if "/data/" in name and len(data) > 4 else data)
    with pytest.raises(CheckpointError, match=r"b\.ckpt: is damaged, tensor data \d+ is cut"):
        read_authors_checkpoint(tmp_path / "b.ckpt")
    with zipfile.ZipFile(tmp_path / "d.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(CheckpointError, match="is compressed, torch never does"):
        read_authors_checkpoint(tmp_path / "d.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": 1, "epoch": 2}, r"has no state_dict, .* \(weights, epoch\)"),
        ([1, 2], "has no state_dict"),
        ({"state_dict": {"a": 1}, "hyper_parameters": {}}, "state_dict are no tensors: a"),
        ({"state_dict": {"a": torch.ones(1)}}, "has no hyper_parameters"),
        (
            {"state_dict": {"a": torch.ones(1)}, "hyper_parameters": {"n_fft": 256}},
            r"a\.ckpt: the weights are of none of the authors'",
        ),
    ],
)
def test_files_that_are_no_lightning_checkpoint_are_refused(
    tmp_path: Path, content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c")


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.ckpt").write_text("these are words, not weights")
    with pytest.raises(CheckpointError, match=r"words\.ckpt: is no PyTorch checkpoint"):
        read_authors_checkpoint(tmp_path / "words.ckpt")
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"zip\.ckpt: is a zip file, but not one of torch"):
        read_authors_checkpoint(tmp_path / "zip.ckpt")
    with pytest.raises(CheckpointError, match=r"none\.ckpt: does not exist"):
        read_authors_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_authors_checkpoint(tmp_path)
