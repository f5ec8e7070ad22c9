"""The authors' checkpoint files of every age made into ours."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lasaft.authors.file import read_authors_checkpoint
from lasaft.authors.importing import import_checkpoint
from lasaft.authors.layout import authors_name
from lasaft.checkpoint import load_checkpoint, load_model
from lasaft.cli import main
from lasaft.config import VARIANTS, ModelConfig
from lasaft.errors import CheckpointError, ConfigError
from lasaft.network.model import LaSAFT
from tests.helpers.audio import tone, write
from tests.helpers.lightning import (
    lightning_content,
    save_old_lightning,
)
from tests.helpers.parity import Fixture, relative_error

NETWORK = "net_gpocm_lasaft_decoder"


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture(NETWORK)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_an_old_lightning_file_is_imported_without_its_classes(
    tmp_path: Path, fixture: Fixture, legacy: bool
) -> None:
    file = save_old_lightning(tmp_path / "epoch=3.ckpt", fixture, legacy=legacy)
    made = import_checkpoint(file, tmp_path / "c")
    found = load_checkpoint(tmp_path / "c")
    assert (found.hash, found.config) == (made.hash, made.config)
    assert made.left_out == ["criterion", "optimizer_class", "options", "train_loss", "where"]
    assert found.provenance["imported_from"] == "epoch=3.ckpt"
    assert found.provenance["file"]["global_step"] == 1234
    assert found.provenance["hyper_parameters"]["seed"] == 2020
    model = load_model(tmp_path / "c")
    with torch.no_grad():
        ours = model(fixture.waves("wave"), fixture["condition"])
    # The reference's own waveform; float32 against float32.
    assert relative_error(ours, fixture.waves("separated")) < 1e-5


@pytest.mark.parametrize("name", ["lasaft_net_v2", "lasaft_net_v2_light"])
def test_a_file_of_the_second_networks_is_known_by_its_weights(tmp_path: Path, name: str) -> None:
    config = ModelConfig(**VARIANTS[name])
    model = LaSAFT(config)
    state = {
        f"spec2spec.{authors_name(key, config)}": value
        for key, value in model.network.state_dict().items()
    }
    assert "spec2spec.decoders.0.tfc_lightsaft.query_pocm_generator.2.weight_g" in state
    assert "spec2spec.decoders.2.pocm_generator.0.weight_v" in state
    assert "spec2spec.mid_block.tdf.tdf.3.weight" in state
    state["stft.stft.window"] = torch.hann_window(2048)
    file = tmp_path / "epoch=669.ckpt"
    torch.save({"epoch": 669, "state_dict": state}, file)
    made = import_checkpoint(file, tmp_path / "c")
    assert made.config == config
    assert {"hop_length", "scale_activation"} <= made.assumed.keys()
    assert not {"n_blocks", "num_tdfs", "key_listen"} & made.assumed.keys()
    found = load_checkpoint(tmp_path / "c").state_dict
    assert all(torch.equal(value, found[key]) for key, value in model.state_dict().items())
    del state["spec2spec.mid_block.tdf.tdf.3.weight"]
    torch.save({"state_dict": state}, file)
    with pytest.raises(
        CheckpointError, match=r"has no hyper_parameters, .* none of lasaft_net_v2,"
    ):
        import_checkpoint(file, tmp_path / "d")


def test_their_linear_embedding_takes_sets(tmp_path: Path) -> None:
    config = ModelConfig(**VARIANTS["lasaft_net_v2_light"], control_vector_type="multi_hot")
    model = LaSAFT(config)
    state = {authors_name(key, config): value for key, value in model.network.state_dict().items()}
    # Theirs is nn.Linear(sources, size): the transpose of a table of vectors.
    state["embedding.linear.weight"] = state.pop("embedding.weight").T.contiguous()
    torch.save({"state_dict": {f"spec2spec.{key}": value for key, value in state.items()}},
               tmp_path / "a.ckpt")  # fmt: skip
    assert import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c").config == config
    found = load_checkpoint(tmp_path / "c").state_dict
    assert all(torch.equal(value, found[key]) for key, value in model.state_dict().items())


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
    song = write(tmp_path / "song.mp3", tone(440, 0.3))
    message = r"^[^\n]*song\.mp3: is no PyTorch checkpoint; give a \.ckpt file of the authors$"
    with pytest.raises(CheckpointError, match=message):
        read_authors_checkpoint(song)
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"zip\.ckpt: is a zip file, but not one of torch"):
        read_authors_checkpoint(tmp_path / "zip.ckpt")
    with pytest.raises(CheckpointError, match=r"none\.ckpt: does not exist"):
        read_authors_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_authors_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["hparams", "module_arguments"])
def test_older_names_of_the_hyper_parameters_are_understood(
    tmp_path: Path, fixture: Fixture, name: str
) -> None:
    content = lightning_content(fixture)
    content[name] = content.pop("hyper_parameters")
    torch.save(content, tmp_path / "a.ckpt")
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c")
    assert load_model(tmp_path / "c").config == fixture.model().config


def test_keys_of_a_parallel_wrapper_are_understood(tmp_path: Path, fixture: Fixture) -> None:
    state = {f"module.{key}": value for key, value in fixture.state.items()}
    torch.save(lightning_content(fixture, state_dict=state), tmp_path / "a.ckpt")
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c")
    with torch.no_grad():
        ours = load_model(tmp_path / "c")(fixture.waves("wave"), fixture["condition"])
    assert relative_error(ours, fixture.waves("separated")) < 1e-5


def test_what_the_file_does_not_say_is_said(
    tmp_path: Path, fixture: Fixture, capsys: pytest.CaptureFixture[str]
) -> None:
    content = lightning_content(fixture)
    for name in ("num_frame", "last_activation"):
        del content["hyper_parameters"][name]
    torch.save(content, tmp_path / "a.ckpt")
    made = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c")
    assert made.assumed == {"num_frame": 128, "last_activation": "identity"}
    assert main(["import-checkpoint", str(tmp_path / "a.ckpt"), str(tmp_path / "d")]) == 0
    assert "so taken as usual: last_activation identity, num_frame 128" in capsys.readouterr().err


def test_an_option_of_the_network_that_is_an_object_is_refused(
    tmp_path: Path, fixture: Fixture
) -> None:
    content = lightning_content(fixture)
    content["hyper_parameters"]["pocm_type"] = torch.nn.ReLU()
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"a\.ckpt: hyper-parameters: pocm_type: got an object"
    ):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c")
