"""Correlations of the references with every signal, at the lags that a filter spans."""

from __future__ import annotations

import numpy as np

from lasaft.metrics.signals import Array, Signals
from lasaft.metrics.spectra import WindowSpectra, bin_chunks, fast_length

_TILE_FFT = 46080  # tile of about one second, where the windows cannot serve as tiles
_TILE_FFT_MANY = 8192  # for many signals: the sums take A x B values a bin
_MANY = 512  # reference rows times rows from which on the smaller tile is used
_CUTS_AT_ONCE = 64


def correlations(signals: Signals, taps: int, windows: WindowSpectra | None = None) -> Array:
    """Return r[a, b, k] = sum over n of s_a(n) x_b(n + k), for k = 0 to taps - 1.

    The signals are cut into tiles; each tile is transformed with zeros behind it, so that nothing
    wraps around, and what reaches across a cut is added afterwards.

    Args:
        signals: A reference rows s among all rows x.
        taps: number of lags.
        windows: spectra of windows that lie end to end from sample 0 and are at least ``taps``
            long: they serve as tiles, so that a second reading can use them again.

    Returns:
        [A, row, taps] float64.
    """
    if windows is None:
        many = signals.references * len(signals.rows) > _MANY
        tile = max(_TILE_FFT_MANY if many else _TILE_FFT, 4 * taps) - taps + 1
        windows = WindowSpectra(signals, 0, tile, tile, signals.samples // tile, taps)
    assert windows.first == 0
    assert windows.hop == windows.length >= taps
    covered = windows.count * windows.length
    rest = signals.samples - covered
    total = np.zeros((signals.references, len(signals.rows), taps))
    if windows.count:
        total += _within_tiles(windows)
    if rest:
        total += _within_tiles(WindowSpectra(signals, covered, rest, rest, 1, taps))
    cuts = windows.length * np.arange(1, windows.count + (rest > 0))
    for begin in range(0, len(cuts), _CUTS_AT_ONCE):
        total[..., 1:] += _across_cuts(signals, cuts[begin : begin + _CUTS_AT_ONCE], taps - 1)
    return total


def _within_tiles(tiles: WindowSpectra) -> Array:
    references, rows = tiles.signals.references, len(tiles.signals.rows)
    total = np.zeros((tiles.bins, 2 * references, rows))
    for _, spectra in tiles.blocks():
        for chunk, stack in bin_chunks(spectra, references, 0):
            total[chunk] += stack[:, : 2 * references] @ stack[:, references:].transpose(0, 2, 1)
    tiles.release()
    # The rows of i s give the imaginary, those of s the real part of conj(s) x.
    cross = np.empty((references, rows, tiles.bins), np.complex128)
    size = 128
    for begin in range(0, tiles.bins, size):
        part = total[begin : begin + size].transpose(1, 2, 0)
        cross.imag[..., begin : begin + size] = part[:references]
        cross.real[..., begin : begin + size] = part[references:]
    del total
    lags = np.empty((references, rows, tiles.taps))
    for row in range(references):
        lags[row] = np.fft.irfft(cross[row], tiles.n_fft)[:, : tiles.taps]
    return lags


def _across_cuts(signals: Signals, cuts: Array, reach: int) -> Array:
    """Return what pairs of samples on both sides of a cut add to the lags 1 to ``reach``."""
    if reach == 0:
        return np.zeros((signals.references, len(signals.rows), 0))
    n_fft = fast_length(2 * reach)

    def spectra(rows: int, offset: int) -> Array:
        pieces = [
            [signals.read(row, c + offset, c + offset + reach) for c in cuts] for row in range(rows)
        ]
        return np.fft.rfft(np.array(pieces), n_fft).transpose(2, 0, 1)

    before = spectra(signals.references, -reach)
    after = spectra(len(signals.rows), 0)
    cross = np.conj(before) @ after.transpose(0, 2, 1)
    # Sample i before and sample j after the cut lie j - i + reach apart.
    shifted = np.fft.irfft(cross.transpose(1, 2, 0), n_fft)
    return shifted[..., np.arange(1 - reach, 1)]
