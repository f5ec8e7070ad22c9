"""BSS Eval on a device: many windows at once, and whole matrices in place of a recursion.

The numbers of the NumPy form up to rounding, in float64. Memory on the device does not grow with
the signals' length or number: samples up to ``_KEEP_BYTES`` stay there between their two readings,
blocks of spectra and of matrices have the sizes below, and what is larger is done on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex128, Float64, Int64
from torch import Tensor
from torch.nn.functional import pad

from lasaft.device import find_device
from lasaft.errors import ConfigError
from lasaft.metrics.energies import PARTS, Energies, Filters, as_energies
from lasaft.metrics.filters import DEPENDENT, EPSILON, projection_filters
from lasaft.metrics.frames import Frames
from lasaft.metrics.signals import Array, Signals
from lasaft.metrics.spectra import transform_length

_KEEP_BYTES = 1 << 30  # of all tracks together: six minutes of four stereo sources in float32
_BLOCK_BYTES = 512 << 20  # spectra of a block; with what is made of them three times as much
# One matrix of 8 signals with 512 taps, which alone fills a GPU, or 16 of one stereo source.
_STACK_BYTES = 128 << 20
_LARGEST_BYTES = 2 << 30  # 16 stereo sources; larger ones by the recursion, in half the memory
_TILE_FFT = 1 << 16


def device_of(name: str | torch.device) -> torch.device:
    """Return the device of this name, if it can score.

    Raises:
        ConfigError: there is none such here, or it has no float64.
    """
    device = find_device(name)
    if device.type == "mps":
        raise ConfigError(f"device: got {str(name)!r}, which has no float64; allowed: cpu, cuda")
    return device


class Samples:
    """The rows of signals, read onto a device.

    Args:
        signals: what is read.
        device: where to.
        keep_bytes: signals up to this size are brought there once and kept.
    """

    def __init__(self, signals: Signals, device: torch.device, keep_bytes: int) -> None:
        self.signals, self.device = signals, device
        size = len(signals.rows) * signals.samples * signals.read_all(0, 0).itemsize
        self.kept_bytes = size if size <= keep_bytes else 0
        self._kept = self._bring(0, signals.samples) if self.kept_bytes else None

    def read(self, start: int, stop: int) -> Float64[Tensor, "row sample"]:
        """Return a new tensor of the samples from ``start``, with zeros beyond the end."""
        end = min(stop, self.signals.samples)
        found = self._bring(start, end) if self._kept is None else self._kept[:, start:end]
        return pad(found.to(torch.float64, copy=True), (0, stop - end))

    def windows(
        self, length: int, hop: int, count: int, bins: int
    ) -> Iterator[tuple[slice, Float64[Tensor, "row window sample"]]]:
        """Yield blocks of windows of which each is to have spectra of so many bins."""
        each = len(self.signals.rows) * max(16 * bins, 8 * hop)
        size = max(1, _BLOCK_BYTES // each)
        for begin in range(0, count, size):
            end = min(begin + size, count)
            strip = self.read(begin * hop, (end - 1) * hop + length)
            yield slice(begin, end), strip.unfold(1, length, hop)

    def _bring(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self.signals.read_all(start, stop)).to(self.device)


@dataclass(frozen=True)
class Measured:
    """What the frames of a part hold, and its filters.

    Attributes:
        filters: of the part.
        energies: None where the frames are too long to be transformed whole.
        plain: what :func:`lasaft.metrics.frames.frame_energies` returns; None with ``energies``.
    """

    filters: Filters
    energies: Energies | None = None
    plain: tuple[Array, Array, Array] | None = None


def measure_parts(
    parts: Sequence[tuple[Signals, Frames]], taps: int, longest: int, device: str | torch.device
) -> Iterator[Measured]:
    """Yield what is measured of parts of tracks, each with filters of its own.

    Args:
        parts: signals, and the frames that share their filters.
        taps: length of the filters in samples.
        longest: frames with longer transforms are left to the host.
        device: where the work is done.

    Raises:
        ConfigError: no such device.
    """
    place, keep, held = device_of(device), _KEEP_BYTES, []
    for signals, _ in parts:
        held.append(Samples(signals, place, keep))
        keep -= held[-1].kept_bytes
    filters = _filters_of([_correlations(samples, taps) for samples in held], held)
    for samples, (_, frames), found in zip(held, parts, filters, strict=True):
        if transform_length(frames.window, taps) > longest:
            yield Measured(found)
        else:
            yield Measured(found, *_measure(samples, frames, found))


def _correlations(samples: Samples, taps: int) -> Float64[Tensor, "reference row lag"]:
    """Return what :func:`lasaft.metrics.correlations.correlations` returns.

    A tile of the references with zeros behind it meets the same stretch of all rows with the next
    samples behind it: the lags up to ``taps`` - 1 do not wrap around.
    """
    signals = samples.signals
    count, rows = signals.references, len(signals.rows)
    n_fft = _TILE_FFT
    while n_fft >= 8 * taps and 8 * n_fft * count * rows > _BLOCK_BYTES:
        n_fft //= 2  # the products of many signals
    n_fft = max(n_fft, transform_length(3 * taps, taps))
    tile = n_fft - taps + 1
    total = torch.zeros(n_fft // 2 + 1, count, rows, dtype=torch.complex128, device=samples.device)
    for _, pieces in samples.windows(n_fft, tile, -(-signals.samples // tile), 2 * len(total)):
        whole = torch.fft.rfft(pieces)
        padded = torch.fft.rfft(pieces[:count, :, :tile], n_fft)
        total += padded.conj().permute(2, 0, 1) @ whole.permute(2, 1, 0)
    return torch.fft.irfft(total.permute(1, 2, 0), n_fft)[..., :taps].contiguous()


def _filters_of(lags: Sequence[Tensor], held: Sequence[Samples]) -> list[Filters]:
    """Return the filters of each part from its correlations [reference, row, lag]."""
    systems: list[tuple[Tensor, Tensor]] = []
    for found, samples in zip(lags, held, strict=True):
        count, channels = samples.signals.references, samples.signals.channels
        among, cross = found[:, :count], found[:, count:]
        own = [slice(first, first + channels) for first in range(0, count, channels)]
        systems += [(among[rows, rows], cross[rows, rows]) for rows in own]
        systems += [(among, cross)] * (len(own) > 1)
    solved = iter(solve(systems))
    filters = []
    for found, samples in zip(lags, held, strict=True):
        own = np.array([next(solved) for _ in range(samples.signals.sources)])
        joint = next(solved) if len(own) > 1 else own[0]
        among = torch.einsum("aak->ak", found[:, : samples.signals.references])
        broken = ~torch.isfinite(among).all(dim=1)
        filters.append(Filters(joint, own, broken.cpu().numpy()))
    return filters


def solve(systems: Sequence[tuple[Tensor, Tensor]]) -> list[Array]:
    """Return :func:`lasaft.metrics.filters.projection_filters` of each (lags, cross).

    Systems of a shape are factored together. What is not positive definite within rounding, or
    is too large, is solved on the host.
    """
    found: dict[int, Array] = {}
    alike: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for number, (lags, cross) in enumerate(systems):
        if 8 * (len(lags) * lags.shape[-1]) ** 2 <= _LARGEST_BYTES and lags.isfinite().all():
            alike.setdefault((lags.shape, cross.shape), []).append(number)
    for ((count, _, taps), _), numbers in alike.items():
        size = max(1, _STACK_BYTES // (8 * (count * taps) ** 2))
        for begin in range(0, len(numbers), size):
            stack = numbers[begin : begin + size]
            lags, cross = (torch.stack([systems[n][side] for n in stack]) for side in (0, 1))
            solution, definite = _solve_stack(lags, cross)
            pairs = zip(stack, solution.cpu().numpy(), definite.tolist(), strict=True)
            found |= {number: one for number, one, fine in pairs if fine}
    return [
        found[number]
        if number in found
        else projection_filters(lags.cpu().numpy(), cross.cpu().numpy())
        for number, (lags, cross) in enumerate(systems)
    ]


def _solve_stack(
    lags: Float64[Tensor, "system a a lag"], cross: Float64[Tensor, "system a estimate lag"]
) -> tuple[Float64[Tensor, "system estimate a lag"], Tensor]:
    """Return the filters, and which of the systems are positive definite [system]."""
    count, taps = lags.shape[1], lags.shape[-1]
    later = lags.permute(0, 3, 2, 1).clone()
    later[:, 0].diagonal(dim1=1, dim2=2).add_(EPSILON)
    blocks = torch.cat([later[:, 1:].flip(1).transpose(2, 3), later], dim=1)
    matrix = blocks[:, _lag_places(taps, lags.device)].transpose(2, 3)
    matrix = matrix.reshape(len(lags), taps * count, taps * count)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    del matrix
    power = later[:, 0].diagonal(dim1=1, dim2=2).repeat(1, taps)
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    definite = (failed == 0) & (pivots >= DEPENDENT * power).all(dim=1)
    right = cross.permute(0, 3, 1, 2).reshape(len(lags), taps * count, -1)
    solution = torch.cholesky_solve(right, factor)
    return solution.unflatten(1, (taps, count)).permute(0, 3, 2, 1), definite


def _lag_places(taps: int, device: torch.device) -> Int64[Tensor, "tap tap"]:
    """Return where the block of (k, l), that of lag l - k, stands among all from 1 - taps on."""
    places = torch.arange(taps, device=device)
    return places - places[:, None] + taps - 1


def _measure(
    samples: Samples, frames: Frames, filters: Filters
) -> tuple[Energies, tuple[Array, Array, Array]]:
    """Measure a part's frames, a block of them at a time."""
    signals, device = samples.signals, samples.device
    count, channels, taps = signals.references, signals.channels, filters.joint.shape[-1]
    n_fft = transform_length(frames.window, taps)
    weight = torch.full((n_fft // 2 + 1,), 2 / n_fft, dtype=torch.float64, device=device)
    weight[[0, -1]] /= 2
    joint = torch.from_numpy(filters.joint).to(device)
    spatial = torch.from_numpy(filters.own.copy()).to(device)  # from a source to q - s
    spatial[:, range(channels), range(channels), 0] -= 1
    broken = torch.from_numpy(filters.broken).to(device).nonzero()[:, 0]
    sums = torch.empty(PARTS, count, frames.count, dtype=torch.float64, device=device)
    plain = torch.empty(2, count, frames.count, dtype=torch.float64, device=device)
    silent = torch.empty(frames.count, dtype=torch.bool, device=device)
    for which, windows in samples.windows(frames.window, frames.hop, frames.count, len(weight)):
        true, ours = windows[:count], windows[count:]
        plain[0, :, which] = true.square().sum(dim=-1)
        plain[1, :, which] = (ours - true).square().sum(dim=-1)
        first, *others = windows.unflatten(0, (-1, channels)).unbind(1)
        silent[which] = (sum(others, first) == 0).all(dim=-1).any(dim=0)
        spectra = torch.fft.rfft(windows, n_fft)
        spectra[broken] = 0
        for source in range(signals.sources):
            rows = slice(source * channels, (source + 1) * channels)
            s, e = spectra[rows], spectra[count:][rows]
            p = _filtered(joint[rows], spectra[:count], n_fft)
            distortion = _filtered(spatial[source], s, n_fft)
            q = distortion + s
            for part, z in enumerate((p, distortion, q, p - q, e - p)):
                sums[part, rows, which] = torch.view_as_real(z).square().sum(dim=-1) @ weight
    true, error = plain.unflatten(1, (-1, channels)).sum(dim=2).cpu().numpy()
    energies = as_energies(sums.flatten(0, 1).cpu().numpy(), signals.sources)
    return energies, (true, error, silent.cpu().numpy())


def _filtered(
    filters: Float64[Tensor, "estimate a tap"],
    spectra: Complex128[Tensor, "a window bin"],
    n_fft: int,
) -> Complex128[Tensor, "estimate window bin"]:
    """Return the spectra of the sums of filtered signals."""
    return torch.einsum("eaf,awf->ewf", torch.fft.rfft(filters, n_fft), spectra)
