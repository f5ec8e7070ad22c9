"""Trained networks as files that run without this library: ONNX and torch.export."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lasaft.errors import ConfigError, StageError
from lasaft.files import atomic_write_bytes
from lasaft.network.conditioning import Wanted
from lasaft.network.model import LaSAFT

FORMATS = (".onnx", ".pt2")
# The name of our JSON: a metadata property of an ONNX file, an extra file in a .pt2 file.
METADATA = "lasaft.json"
TOLERANCE = 1e-5  # of the largest value of the plain network's output

_INPUTS, _OUTPUT = ("mixture_spec", "condition"), "estimate"
_EXTRA = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
_MOST_BYTES = 2**31 - 2**20  # an ONNX file is one protobuf message


@dataclass(frozen=True)
class Exported:
    """What :func:`export_model` wrote.

    Args:
        path: the file.
        bytes: its size.
        frame_multiple: the frame count must be a multiple of this, and at least twice it; None
            where the file takes waveforms of any length.
        error: largest difference from the plain network, relative to its largest output.
    """

    path: Path
    bytes: int
    frame_multiple: int | None
    error: float


class SpectrogramNetwork(nn.Module):
    """The part of a model that is exported: from spectrogram to spectrogram."""

    def __init__(self, model: LaSAFT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, mixture_spec: Float[Tensor, "batch plane frame bin"], condition: Wanted
    ) -> Float[Tensor, "batch plane frame bin"]:
        """Estimate the chosen sources, complex planes as channels for every framework."""
        estimate = self.model.estimate(mixture_spec, condition)
        return self.model.to_spectrogram(estimate, mixture_spec)


def export_model(
    model: LaSAFT, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> Exported:
    """Write the spectrogram network of ``model`` as one file, whole or not at all.

    The file takes ``mixture_spec`` [batch, plane, frame, bin], float32, the real parts of the
    audio channels, then their imaginary parts, and ``condition`` [batch], int64, indices into the
    source names; with ``control_vector_type multi_hot`` [batch, source], float32, 1 for each source
    of the set and 0 for the others. It gives ``estimate`` of the mixture's shape, which an inverse
    STFT makes audio. Batch and frame count are free; frames are a multiple of
    ``config.time_reduction``, at least twice it. Before the file appears, it is run beside the
    plain network with other counts.

    Args:
        model: the network; it stays as it is.
        path: ends in .onnx (for ONNX runtimes) or .pt2 (for ``torch.export.load``).
        provenance: where the weights come from; anything that JSON can hold.

    Raises:
        ConfigError: another ending, a GRU in the network, or one that is too large for ONNX.
        StageError: packages of the ``export`` extra are missing, or the file does not give what
            the plain network gives.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: ends in {path.suffix!r}, allowed: {', '.join(FORMATS)}")
    check_possible(model, path)
    network = SpectrogramNetwork(copy.deepcopy(model).cpu().float().eval()).requires_grad_(False)
    metadata = json.dumps(metadata_of(model, provenance or {}), ensure_ascii=False)
    write, run = (_onnx, _run_onnx) if path.suffix == ".onnx" else (_pt2, _run_pt2)
    with torch.no_grad(), quietly():
        data = write(network, _example(model, batch=2, steps=2), metadata)
        error = _difference(network, run(data), _example(model, batch=3, steps=5))
    if not error <= TOLERANCE:
        raise StageError(
            f"{path}: not written: the exported network differs from the plain one by {error:.1e} "
            f"of its scale, allowed: {TOLERANCE:.0e}"
        )
    atomic_write_bytes(path, data)
    return Exported(path, len(data), model.config.time_reduction, error)


def check_possible(model: LaSAFT, path: Path) -> None:
    """Refuse what cannot be exported.

    Raises:
        ConfigError, StageError: see :func:`export_model`.
    """
    if any(isinstance(part, nn.GRU) for part in model.modules()):
        allowed = "one without a GRU, which torch.export writes out for one number of frames"
        raise ConfigError(f"{path}: block: got {model.config.block}, allowed: {allowed}")
    if path.suffix != ".onnx":
        return
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise StageError(
            f"{path}: writing ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    if size > _MOST_BYTES:
        raise ConfigError(f"{path}: ONNX holds 2 GB, the network has {size / 1e9:.1f} GB: use .pt2")


def metadata_of(model: LaSAFT, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file says of itself."""
    config = model.config
    return {
        "format": 1,
        "sources": list(config.sources),
        "sample_rate": config.sample_rate,
        "frame_multiple": config.time_reduction,
        "model": config.model_dump(mode="json"),
        "provenance": dict(provenance),
    }


def _example(model: LaSAFT, batch: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return a noise spectrogram and conditions."""
    config = model.config
    shape = (batch, config.spec_channels, steps * config.time_reduction, config.bins)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(batch))
    single = torch.arange(batch) % len(config.sources)
    if not config.takes_sets:
        return noise, single
    rows = torch.eye(len(config.sources))[single]
    return noise, rows.maximum(rows.roll(1, 0))  # sets of two


def _graph(network: SpectrogramNetwork, example: tuple[Tensor, Tensor]) -> tuple[Any, Any]:
    """Return the network's graph and its free sizes."""
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps", min=2)
    reduction = network.model.config.time_reduction
    frames = reduction * steps if reduction > 1 else steps
    free = {_INPUTS[0]: {0: batch, 2: frames}, _INPUTS[1]: {0: batch}}
    return torch.export.export(network, example, dynamic_shapes=free), free


def _pt2(network: SpectrogramNetwork, example: tuple[Tensor, Tensor], metadata: str) -> bytes:
    program, _ = _graph(network, example)
    buffer = BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: metadata})
    return buffer.getvalue()


def _onnx(network: SpectrogramNetwork, example: tuple[Tensor, Tensor], metadata: str) -> bytes:
    graph, free = _graph(network, example)
    program = torch.onnx.export(
        graph,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=_INPUTS,
        output_names=[_OUTPUT],
        dynamic_shapes=free,
    )
    assert program is not None
    program.model.metadata_props[METADATA] = metadata
    return program.model_proto.SerializeToString()


def _run_pt2(data: bytes) -> Callable[[Tensor, Tensor], Tensor]:
    return torch.export.load(BytesIO(data)).module()


def _run_onnx(data: bytes) -> Callable[[Tensor, Tensor], Tensor]:
    import onnxruntime  # of the extra, so not at the top # noqa: PLC0415

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        arrays = [value.numpy() for value in inputs]
        return torch.from_numpy(session.run([_OUTPUT], dict(zip(_INPUTS, arrays, strict=True)))[0])

    return run


def _difference(
    network: SpectrogramNetwork,
    exported: Callable[[Tensor, Tensor], Tensor],
    example: tuple[Tensor, Tensor],
) -> float:
    wanted = network(*example)
    scale = max(float(wanted.abs().max()), 1e-12)
    return float((exported(*example) - wanted).abs().max()) / scale


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the exporters' notes about their own insides from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
