"""Spectra of many windows, block by block, laid out so that small matrix products are fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from scipy.fft import next_fast_len

from lasaft.metrics.signals import Array, Signals

BLOCK_BYTES = 96 << 20  # spectra of one block; 16 windows of 1 s of 4 stereo sources
CHUNK_BYTES = 768 << 10  # one chunk of bins with its products; fits a 1 MiB second-level cache
_ALIGN = 64  # transforms that are a multiple of this were the fastest (46080 for 1 s windows)


def transform_length(samples: int, taps: int) -> int:
    """Return a fast even transform length in which ``samples`` filtered by ``taps`` fit."""
    return _ALIGN * fast_length(-(-(samples + taps - 1) // _ALIGN))


def fast_length(samples: int) -> int:
    """Return the next length with small factors only."""
    return int(cast("int", next_fast_len(samples, real=True)))


@dataclass
class WindowSpectra:
    """Zero-padded spectra of ``count`` windows of ``length`` samples, ``hop`` apart.

    Args:
        signals: what to transform.
        first: first sample of the first window.
        length: samples in a window.
        hop: samples from a window to the next.
        count: number of windows.
        taps: length of the filters: none of their output wraps around the transform.
        keep_bytes: spectra up to this size are kept for a second reading.
        divide: blocks this many times smaller, for a caller that holds more beside them.
    """

    signals: Signals
    first: int
    length: int
    hop: int
    count: int
    taps: int
    keep_bytes: int = 0
    divide: int = 1
    _kept: dict[int, Array] = field(default_factory=dict)
    _scratch: Array | None = None

    def __post_init__(self) -> None:
        self.n_fft = transform_length(self.length, self.taps)
        self.bins = self.n_fft // 2 + 1
        window_bytes = len(self.signals.rows) * self.bins * 16
        self.n_bytes = self.count * window_bytes
        self.per_block = max(1, min(self.count, BLOCK_BYTES // (window_bytes * self.divide)))

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield (windows, spectra [row, window, bin] complex128); use each before the next."""
        # The zeros stand there already: the transform would put its own sample by sample.
        padded = np.zeros((self.per_block, self.n_fft))
        for begin in range(0, self.count, self.per_block):
            size = min(self.per_block, self.count - begin)
            spectra = self._kept.get(begin)
            if spectra is None:
                spectra = self._space(begin, size)
                for row in range(len(self.signals.rows)):
                    padded[:size, : self.length] = self._windows(row, begin, size)
                    np.fft.rfft(padded[:size], out=spectra[row])
            yield slice(begin, begin + size), spectra

    def release(self) -> None:
        """Free the space of the block read last; kept blocks stay."""
        self._scratch = None

    def _windows(self, row: int, begin: int, size: int) -> Array:
        start = self.first + begin * self.hop
        strip = self.signals.read(row, start, start + (size - 1) * self.hop + self.length)
        return np.lib.stride_tricks.sliding_window_view(strip, self.length)[:: self.hop]

    def _space(self, begin: int, size: int) -> Array:
        shape = (len(self.signals.rows), size, self.bins)
        n_bytes = 16 * int(np.prod(shape))
        if n_bytes <= self.keep_bytes:
            self.keep_bytes -= n_bytes
            self._kept[begin] = np.empty(shape, np.complex128)
            return self._kept[begin]
        if self._scratch is None or self._scratch.shape != shape:
            self._scratch = None  # free the old one first
            self._scratch = np.empty(shape, np.complex128)
        return self._scratch


def bin_chunks(
    spectra: Array, n_references: int, rows_beside: int
) -> Iterator[tuple[slice, Array]]:
    """Yield chunks of bins as real matrices that multiply complex numbers.

    Args:
        spectra: [row, window, bin] complex; the first ``n_references`` rows are references.
        n_references: number A of reference rows.
        rows_beside: rows of the caller's products, so that both fit the cache.

    Yields:
        (bins, stack): stack is [bin, A + row, 2 window] real, one buffer used for all chunks:
        the references times i, then all rows, with real and imaginary parts side by side. A row
        (re c, im c) times (row of s, row of i s) is then the product c s.
    """
    rows, windows, bins = spectra.shape
    n_rows = n_references + rows
    size = max(1, CHUNK_BYTES // (16 * windows * (n_rows + rows_beside)))
    stack = np.empty((min(size, bins), n_rows, windows), np.complex128)
    for begin in range(0, bins, size):
        chunk = slice(begin, min(begin + size, bins))
        part = stack[: chunk.stop - begin]
        part[:, n_references:] = spectra[:, :, chunk].transpose(2, 0, 1)
        np.multiply(part[:, n_references : 2 * n_references], 1j, out=part[:, :n_references])
        yield chunk, part.view(np.float64)
