"""A trained network as one ONNX file from waveform to waveforms, of any length."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lasaft.errors import ConfigError, StageError
from lasaft.export import (
    METADATA,
    OPSET,
    Exported,
    check_possible,
    metadata_of,
    quietly,
)
from lasaft.files import atomic_write_bytes
from lasaft.network.model import LaSAFT
from lasaft.separation.chunks import wave_grid
from lasaft.separation.separator import Separator, plain_estimator

TOLERANCE = 1e-4  # of the loudest sample: no score moves by 0.01 dB for it
_OVERLAP = 0.5  # as the Separator has it by default
_INPUTS, _OUTPUT = ("mixture", "condition"), "stems"
# What stands before and behind the network: zeros around the song, so that chunks fill it.
_AROUND = ("""
<ir_version: 10, opset_import: ["": {opset}]>
around (float[{channels}, samples] mixture)
  => (float[{channels}, padded] padded, int64[1] song_length)
{{
  song_one = Constant <value_ints: ints = [1]> ()
  song_two = Constant <value_ints: ints = [2]> ()
  song_zero = Constant <value_ints: ints = [0]> ()
  song_hop = Constant <value_ints: ints = [{hop}]> ()
  song_rest = Constant <value_ints: ints = [{rest}]> ()
  song_most = Constant <value_ints: ints = [{most}]> ()
  song_trim = Constant <value_ints: ints = [{trim}]> ()
  song_shape = Shape (mixture)
  song_length = Slice (song_shape, song_one, song_two)
  song_beyond = Add (song_length, song_most)
  song_positive = Max (song_beyond, song_zero)
  song_more = Div (song_positive, song_hop)
  song_span = Mul (song_more, song_hop)
  song_total = Add (song_span, song_rest)
  song_left = Sub (song_total, song_length)
  song_behind = Sub (song_left, song_trim)
  song_pads = Concat <axis = 0> (song_zero, song_trim, song_zero, song_behind)
  padded = Pad (mixture, song_pads)
}}
""", """
<ir_version: 10, opset_import: ["": {opset}]>
behind (float[targets, {channels}, joined] joined, int64[1] song_end)
  => (float[targets, {channels}, samples] stems)
{{
  song_begin = Constant <value_ints: ints = [0]> ()
  song_axis = Constant <value_ints: ints = [2]> ()
  stems = Slice (joined, song_begin, song_end, song_axis)
}}
""")  # fmt: skip


class WaveNetwork(nn.Module):
    """From a mixture with zeros around it to its sources, chunk by chunk, as the Separator does.

    The transforms are convolutions with sines and cosines, which every ONNX runtime has.
    """

    forth: Tensor
    back: Tensor
    envelope: Tensor

    def __init__(self, model: LaSAFT) -> None:
        super().__init__()
        self.model, self.config, self.grid = model, model.config, wave_grid(model.config, _OVERLAP)
        size, hop = self.config.n_fft, self.config.hop_length
        window = torch.hann_window(size, dtype=torch.float64)
        angle = torch.arange(size // 2 + 1)[:, None] * torch.arange(size)[None] % size
        angle = angle.double() * (2 * math.pi / size)
        basis = torch.cat((angle.cos(), -angle.sin())) * window
        # All bins but the first and the last stand for two.
        twice = torch.full((size // 2 + 1,), 2.0, dtype=torch.float64)
        twice[0] = twice[-1] = 1.0
        self.register_buffer("forth", basis[:, None].float())
        self.register_buffer("back", (basis * twice.repeat(2)[:, None] / size)[:, None].float())
        frames = 1 + self.grid.window // hop
        squares = functional.conv_transpose1d(
            torch.ones(1, 1, frames, dtype=torch.float64), (window**2)[None, None], stride=hop
        )
        self.register_buffer("envelope", squares[0, 0, size // 2 :][: self.grid.window].float())

    def forward(
        self,
        padded: Float[Tensor, "channel padded"],
        condition: Int[Tensor, " target"],
    ) -> Float[Tensor, "target channel joined"]:
        """Separate the chosen sources of all chunks and join them."""
        from torch._higher_order_ops.scan import scan  # noqa: PLC0415 (torch has no public name)

        grid = self.grid
        windows = padded.unfold(-1, grid.window, grid.hop).permute(1, 0, 2)

        def step(nothing: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
            return nothing.clone(), self._chunk(window, condition)

        _, pieces = scan(step, torch.zeros(1), windows)
        if grid.overlap:  # where two overlap, each counts one half
            heads, tails = pieces[..., : grid.overlap], pieces[..., grid.hop :]
            before = torch.cat((heads[:1], tails[:-1]))
            pieces = torch.cat((0.5 * before + 0.5 * heads, pieces[..., grid.overlap :]), dim=-1)
        joined = pieces[..., : grid.hop].permute(1, 2, 0, 3).flatten(2)
        return torch.cat((joined, pieces[-1, ..., grid.hop :]), dim=-1)

    def _chunk(self, window: Tensor, condition: Tensor) -> Tensor:
        size, hop, channels = self.config.n_fft, self.config.hop_length, len(window)
        wide = functional.pad(window[:, None], (size // 2, size // 2), mode="reflect")
        both = functional.conv1d(wide, self.forth, stride=hop)  # [channel, 2 * bin, frame]
        planes = both.unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 1).transpose(1, 2)
        spec = planes[None].expand(len(condition), -1, -1, -1)
        found = self.model.to_spectrogram(self.model.estimate(spec, condition), spec)
        both = found.unflatten(1, (2, channels)).permute(0, 2, 1, 4, 3).flatten(2, 3).flatten(0, 1)
        wave = functional.conv_transpose1d(both, self.back, stride=hop)[:, 0]
        wave = wave[:, size // 2 :][:, : self.grid.window] / self.envelope
        trim = self.grid.trim
        return wave.unflatten(0, (-1, channels))[..., trim : trim + self.grid.length]


def export_waves(
    model: LaSAFT, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> Exported:
    """Write ``model`` with its STFT and the cutting of songs as one ONNX file, whole or not at all.

    The file takes ``mixture`` [channel, sample], float32 at the network's sample rate, of any
    length, and ``condition`` [target], int64, indices into the source names. It gives ``stems``
    [target, channel, sample]: what the Separator gives, in memory that grows with the song by its
    own size alone. Before the file appears, it is run beside the Separator with other lengths.

    Raises:
        ConfigError, StageError: see :func:`lasaft.export.export_model`.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ConfigError(f"{path}: ends in {path.suffix!r}, allowed with with_stft: .onnx")
    check_possible(model, path)
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    said = metadata_of(model, provenance or {})
    said |= {"with_stft": True, "channels": model.config.audio_channels}
    with torch.no_grad(), quietly():
        data = _written(model, json.dumps(said, ensure_ascii=False))
        error = _difference(model, data)
    if not error <= TOLERANCE:
        raise StageError(
            f"{path}: not written: the file differs from the Separator by {error:.1e} of the "
            f"loudest sample, allowed: {TOLERANCE:.0e}"
        )
    atomic_write_bytes(path, data)
    return Exported(path, len(data), None, error)


def _written(model: LaSAFT, metadata: str) -> bytes:
    import onnx  # of the extra, so not at the top # noqa: PLC0415

    network, channels = WaveNetwork(model).eval(), model.config.audio_channels
    grid = network.grid
    rest = grid.window - grid.hop
    chunks, targets = torch.export.Dim("chunks", min=1), torch.export.Dim("targets", min=1)
    free = {"padded": {1: grid.hop * chunks + rest}, "condition": {0: targets}}
    example = (torch.zeros(channels, 2 * grid.hop + rest), torch.tensor([0, 0]))
    graph = torch.export.export(network, example, dynamic_shapes=free, strict=False)
    program = torch.onnx.export(
        graph, dynamo=True, verbose=False, opset_version=OPSET, dynamic_shapes=free,
        input_names=("padded", "condition"), output_names=["joined"],
    )  # fmt: skip
    assert program is not None
    inner = program.model_proto
    numbers = {
        "opset": OPSET, "channels": channels, "hop": grid.hop, "trim": grid.trim,
        # One chunk, and one more for each hop that is begun beyond its length.
        "rest": grid.window, "most": grid.hop - 1 - grid.length,
    }  # fmt: skip
    before, behind = (onnx.parser.parse_model(text.format(**numbers)) for text in _AROUND)
    before.ir_version = behind.ir_version = inner.ir_version
    whole = onnx.compose.merge_models(before, inner, [("padded", "padded")])
    joints = [("joined", "joined"), ("song_length", "song_end")]
    whole = onnx.compose.merge_models(whole, behind, joints)
    onnx.helper.set_model_props(whole, {METADATA: metadata})
    return whole.SerializeToString()


def _difference(model: LaSAFT, data: bytes) -> float:
    """Return how far the file is from the Separator at most, of a song's loudest sample."""
    import onnxruntime  # of the extra, so not at the top # noqa: PLC0415

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # of what it leaves out it warns
    session = onnxruntime.InferenceSession(data, quiet, providers=["CPUExecutionProvider"])
    separator = Separator(model, build_estimator=plain_estimator)
    grid, config, worst = wave_grid(model.config, _OVERLAP), model.config, 0.0
    targets = (config.sources[-1], *config.sources[:1])
    condition = np.array([config.sources.index(name) for name in targets])
    for length in (grid.trim, grid.length + grid.hop + 7):
        noise = torch.randn(
            config.audio_channels, length, generator=torch.Generator().manual_seed(1)
        )
        feed = dict(zip(_INPUTS, ((0.1 * noise).numpy(), condition), strict=True))
        wanted = separator.separate(0.1 * noise, config.sample_rate, targets)
        for stem, name in zip(np.asarray(session.run([_OUTPUT], feed)[0]), targets, strict=True):
            plain = wanted[name].numpy()
            worst = max(worst, float(np.abs(stem - plain).max() / max(np.abs(plain).max(), 1e-12)))
    return worst
