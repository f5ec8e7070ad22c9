"""Energies of the parts into which BSS Eval splits an estimate, window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from lasaft.metrics.signals import Array, Signals
from lasaft.metrics.spectra import WindowSpectra, bin_chunks

PARTS = 5  # projections on all references and on its own, and the three distortions
_STRETCH_FFT = 46080  # transform length where a window is too long to be transformed whole


@dataclass(frozen=True)
class Filters:
    """The filters of one track or one window.

    Attributes:
        joint: [source x channel, source x channel, taps], from all references to each estimate.
        own: [source, channel, channel, taps], from a source's own channels to its estimate.
        broken: [source x channel], references that hold NaN or infinity. Their filters and all
            joint ones are NaN; such a reference is read as zeros, so that it leaves the energies
            alone that do not depend on it.
    """

    joint: Array
    own: Array
    broken: Array


@dataclass(frozen=True)
class Energies:
    """Energies summed over samples and channels, each [source, window].

    With s the reference, e its estimate, p the filtered references closest to e and q the same
    from the source's own reference: ``joint`` = |p|^2, ``own`` = |q|^2, ``spatial`` = |q - s|^2,
    ``interference`` = |p - q|^2, ``artifacts`` = |e - p|^2.
    """

    joint: Array
    spatial: Array
    own: Array
    interference: Array
    artifacts: Array

    @classmethod
    def side_by_side(cls, parts: Sequence[Energies]) -> Energies:
        """Join the energies of windows in order."""
        names = (field.name for field in fields(cls))
        return cls(*(np.concatenate([getattr(p, n) for p in parts], axis=1) for n in names))


def _kernel(filters: Filters, n_fft: int) -> Array:
    """Return real matrices [bin, 2A, 2A] that turn the stack's (i s, s) into p and q - s."""
    sources, channels, _, taps = filters.own.shape
    count = sources * channels
    own = np.zeros((count, count, taps))
    for source in range(sources):
        rows = slice(source * channels, (source + 1) * channels)
        own[rows, rows] = filters.own[source]
    own[np.arange(count), np.arange(count), 0] -= 1
    kernel = np.empty((n_fft // 2 + 1, 2 * count, 2 * count))
    for row, taps_of_row in enumerate((*filters.joint, *own)):
        spectrum = np.fft.rfft(taps_of_row, n_fft).T
        kernel[:, row, :count] = spectrum.imag
        kernel[:, row, count:] = spectrum.real
    return kernel


def _split(kernel: Array, stack: Array, out: Array) -> None:
    """Fill ``out`` [bin, 5A, 2 window] with the spectra of p, q - s, q, p - q, e - p."""
    count = kernel.shape[1] // 2
    joint, spatial, own, interference, artifacts = (
        out[:, part * count : (part + 1) * count] for part in range(PARTS)
    )
    np.matmul(kernel, stack[:, : 2 * count], out=out[:, : 2 * count])
    np.add(spatial, stack[:, count : 2 * count], out=own)
    np.subtract(joint, own, out=interference)
    np.subtract(stack[:, 2 * count :], joint, out=artifacts)


def as_energies(sums: Array, sources: int) -> Energies:
    """Sum [5A, window] over the channels of each source."""
    parts = sums.reshape(PARTS, sources, -1, sums.shape[-1]).sum(axis=2)
    if sources == 1:
        parts[3] *= 0  # both filters are the same; NaN stays NaN
    return Energies(*parts)


def window_energies(windows: WindowSpectra, filters: Filters) -> Energies:
    """Return the energies in each window, from its spectra by Parseval's theorem.

    Each window is filtered on its own, with zeros around it, and its filtered sources are taken
    whole, with the ``taps`` - 1 samples that ring on after the window, as museval does.
    """
    signals = windows.signals
    count = signals.references
    kernel = _kernel(filters, windows.n_fft)
    weight = np.full(windows.bins, 2 / windows.n_fft)
    weight[[0, -1]] /= 2
    sums = np.empty((PARTS * count, windows.count))
    for which, spectra in windows.blocks():
        size = which.stop - which.start
        total = np.zeros(PARTS * count * 2 * size)
        out = np.empty((0, 0, 0))
        for chunk, stack in bin_chunks(spectra, count, PARTS * count):
            if len(out) != len(stack):
                out = np.empty((len(stack), PARTS * count, 2 * size))
            _split(kernel[chunk], stack, out)
            np.square(out, out=out)
            total += weight[chunk] @ out.reshape(len(stack), -1)
        sums[:, which] = total.reshape(-1, size, 2).sum(axis=-1)
    windows.release()
    return as_energies(sums, signals.sources)


def stretch_energies(signals: Signals, filters: Filters) -> Energies:
    """Return the energies over all of ``signals`` as one window, in memory for a few seconds.

    The same numbers as :func:`window_energies`; filters by overlap-save, a stretch at a time.
    """
    taps = filters.joint.shape[-1]
    count = signals.references
    length = max(_STRETCH_FFT, 4 * taps)
    hop = length - (taps - 1)
    pieces = -(-(signals.samples + taps - 1) // hop)
    stretches = WindowSpectra(signals, 1 - taps, length, hop, pieces, taps=1, divide=PARTS)
    kernel = _kernel(filters, stretches.n_fft)
    sums = np.zeros(PARTS * count)
    for _, spectra in stretches.blocks():
        size = spectra.shape[1]
        parts = np.empty((PARTS * count, size, stretches.bins), np.complex128)
        for chunk, stack in bin_chunks(spectra, count, PARTS * count):
            out = np.empty((len(stack), PARTS * count, 2 * size))
            _split(kernel[chunk], stack, out)
            parts[..., chunk] = out.view(np.complex128).transpose(1, 2, 0)
        for row, spectrum in enumerate(parts):
            filtered = np.fft.irfft(spectrum, stretches.n_fft)[:, taps - 1 : length].ravel()
            sums[row] += filtered @ filtered
    return as_energies(sums[:, None], signals.sources)
