"""Exported networks give what the plain ones give, for other batch and frame counts too."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import torch

from lasaft import export
from lasaft.card import card_of
from lasaft.checkpoint import load_checkpoint, save_checkpoint
from lasaft.cli import commands as cli
from lasaft.errors import ConfigError, StageError
from lasaft.export import METADATA, export_model
from lasaft.network.model import LaSAFT
from lasaft.separation.separator import Separator
from lasaft.separation.wave_export import export_waves
from tests.helpers.models import small_model

# Together every block, modulation and framework; `python -m benchmarks.exports` has all pairs.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "complex mapping": (".onnx", {}),
    "magnitude masking": (
        ".onnx",
        {"block": "tfc_lightsaft", "modulation": "film", "spec_type": "magnitude",
         "spec_est_mode": "masking", "control_vector_type": "one_hot_mode"},
    ),
    "second generation": (
        ".onnx",
        {"block": "tfc_lightsaft_v2", "control_type": "per_block", "query_listen": True,
         "key_listen": True, "norm": "gn", "scale_activation": "leaky_relu",
         "control_vector_type": "multi_hot"},
    ),
    "complex masking": (
        ".pt2",
        {"modulation": "none", "spec_est_mode": "masking",
         "block": "tdc", "t_down_layers": (0,), "sources": ("speech", "rest", "music")},
    ),
    "magnitude mapping, mono": (
        ".pt2",
        {"block": "tfc", "modulation": "pocm", "spec_type": "magnitude", "input_channels": 1},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def unchecked_shapes() -> Iterator[None]:
    """While a network is traced, its sizes are symbols: no integers, as the checker wants them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def spectrogram(model: LaSAFT, batch: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with silence in its first frame, and a condition for each item."""
    shape = (batch, model.config.spec_channels, frames, model.config.bins)
    spec = torch.randn(shape, generator=torch.Generator().manual_seed(frames))
    spec[:, :, 0] = 0
    single = torch.arange(batch) % len(model.config.sources)
    if model.config.takes_sets:
        return spec, 1 - torch.eye(len(model.config.sources))[single]
    return spec, single


def plain(model: LaSAFT, spec: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.to_spectrogram(model.estimate(spec, condition), spec)


def exported(path: Path) -> tuple[Any, dict[str, Any]]:
    """What other programs do with the file: a function of two tensors, and the metadata."""
    if path.suffix == ".pt2":
        extra = {METADATA: ""}
        program = torch.export.load(path, extra_files=extra)
        return program.module(), json.loads(extra[METADATA])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["mixture_spec", "condition"]
    assert session.get_inputs()[0].shape[0] == session.get_outputs()[0].shape[0] == "batch"

    def run(spec: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        feed = {"mixture_spec": spec.numpy(), "condition": condition.numpy()}
        return torch.from_numpy(session.run(["estimate"], feed)[0])

    return run, json.loads(session.get_modelmeta().custom_metadata_map[METADATA])


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_file_gives_what_the_network_gives(tmp_path: Path, name: str) -> None:
    ending, options = NETWORKS[name]
    model = small_model(n_internal_layers=1, **options)
    done = export_model(model, tmp_path / f"network{ending}", {"run": "test"})
    assert done.path.stat().st_size == done.bytes
    assert [path.name for path in tmp_path.iterdir()] == [f"network{ending}"]
    run, metadata = exported(done.path)
    assert metadata["sources"] == list(model.config.sources)
    assert metadata["model"] == model.config.model_dump(mode="json")
    assert metadata["provenance"] == {"run": "test"}
    multiple = metadata["frame_multiple"]
    assert multiple == done.frame_multiple == model.config.time_reduction
    for batch, steps in ((1, 2), (1, 9), (4, 3)):
        spec, condition = spectrogram(model, batch, steps * multiple)
        wanted = plain(model, spec, condition)
        found = run(spec, condition)
        assert found.shape == wanted.shape == spec.shape
        # Of the output's scale; other kernels add in another order.
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block": "tfc", "modulation": "pocm", "spec_type": "magnitude", "input_channels": 1,
         "spec_est_mode": "masking"},
    ],
    ids=["complex mapping", "magnitude masking, mono"],
)  # fmt: skip
def test_a_file_with_the_stft_gives_what_the_separator_gives(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model(n_internal_layers=1, **options)
    save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {})
    words = ["export", str(tmp_path / "c"), str(tmp_path / "waves.onnx"), "--with_stft", "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["frame_multiple"] is None
    session = onnxruntime.InferenceSession(tmp_path / "waves.onnx")
    metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert (metadata["with_stft"], metadata["sources"]) == (True, list(model.config.sources))
    separator = Separator(model)
    for samples in (1, 900, 5003):
        song = 0.1 * torch.randn(model.config.audio_channels, samples)
        condition = np.arange(len(model.config.sources))
        feed = {"mixture": song.numpy(), "condition": condition}
        stems = np.asarray(session.run(["stems"], feed)[0])
        for stem, wanted in zip(stems, separator.separate(song, 44100).values(), strict=True):
            # 0.01 dB are 1.2e-3 of an amplitude; other kernels add in another order.
            assert np.abs(stem - wanted.numpy()).max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
    with pytest.raises(ConfigError, match=r"allowed with with_stft: \.onnx"):
        export_waves(model, tmp_path / "waves.pt2")


def test_a_checkpoint_is_exported_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model(n_internal_layers=1, block="tdf")
    save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {"epoch": 3})
    file = tmp_path / "deep" / "network.pt2"
    assert cli.main(["export", str(tmp_path / "c"), str(file), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["file"], result["bytes"]) == (str(file), file.stat().st_size)
    assert (result["frame_multiple"], result["least_frames"]) == (1, 2)
    run, metadata = exported(file)
    digest = load_checkpoint(tmp_path / "c").hash
    assert metadata["provenance"] == {
        "checkpoint": digest,
        "epoch": 3,
        "card": card_of({"epoch": 3}, digest),
    }
    spec, condition = spectrogram(model, 3, 11)
    np.testing.assert_allclose(run(spec, condition), plain(model, spec, condition), atol=1e-5)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_network_with_a_gru_is_refused(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ConfigError, match="block: got tfc_rnn, allowed: one without a GRU"):
        export_model(small_model(block="tfc_rnn"), tmp_path / f"network{ending}")
    assert not any(tmp_path.iterdir())


def test_another_ending_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model()
    save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {})
    assert cli.main(["export", str(tmp_path / "c"), str(tmp_path / "net.tflite")]) == 2
    assert "net.tflite: ends in '.tflite', allowed: .onnx, .pt2" in capsys.readouterr().err


def test_onnx_without_the_extra_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name)
    )
    with pytest.raises(StageError, match=r"ONNX needs onnxscript: pip install onnxscript$"):
        export_model(small_model(), tmp_path / "network.onnx")


def test_a_network_beyond_what_onnx_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"ONNX holds 2 GB.*use \.pt2"):
        export_model(small_model(), tmp_path / "network.onnx")


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_pt2", lambda network, example, metadata: b"")
    monkeypatch.setattr(export, "_run_pt2", lambda data: lambda spec, condition: spec * np.nan)
    with pytest.raises(StageError, match=r"not written: .* differs from the plain one by nan"):
        export_model(small_model(), tmp_path / "network.pt2")
    assert list(tmp_path.iterdir()) == []
