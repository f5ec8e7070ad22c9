"""Metrics that weigh what is heard, as other leaderboards print them; none is in decibels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lasaft.metrics.signals import Array
from lasaft.metrics.simple import same_shape

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_WMSE_EPS = 1e-8
_WMSE_SCALE = -4.0  # makes a tenth as telling as a tenth of a dB
_WMSE_RATE = 44100  # that of the package's filter, which has so many taps
_WMSE_TAPS = 4000
_WMSE_BLOCK = 1 << 15  # samples at a time
_N_FFT, _HOP, _BANDS = 4096, 1024, 512
_RANGE_DB, _FLOOR = 80.0, 1e-10
_FRAMES = 32  # at a time


def log_wmse(references: Any, estimates: Any, mixture: Any, sample_rate: float) -> Array:
    """Return logWMSE, one number for each whole source; higher is better, 73.7 the most.

    -4 ln(E + 1e-8) with E the energy of the error over that of the mixture, both weighted as ears
    hear; the mean over channels. Defined for silence too.

    Args:
        references: [source, channel, sample].
        estimates: of the same shape.
        mixture: [channel, sample].
        sample_rate: in Hz. The package lets its filter follow it; here the weights are always
            those of 44.1 kHz, so that it decides nothing.

    Returns:
        [source] float64.

    Source:
        torch-log-wmse 1.1.0, after Nomono's log-wmse-audio-quality.
    """
    true, ours = same_shape(references, estimates)
    whole = np.asarray(mixture, np.float64)
    level = np.maximum(_heard(whole, sample_rate), whole.shape[1] * _WMSE_EPS**2)
    errors = (e.astype(np.float64) - s for s, e in zip(true, ours, strict=True))
    energies = np.array([_heard(error, sample_rate) for error in errors])
    return _WMSE_SCALE * np.log(energies / level + _WMSE_EPS).mean(axis=1)


def _heard(wave: Array, sample_rate: float) -> Array:
    """Return the weighted energy of each channel: its correlation with itself, weighted."""
    hop = _WMSE_BLOCK - _WMSE_TAPS
    weights, energies = _hearing_weights(sample_rate), []
    for channel in wave:
        padded = np.pad(channel, (0, -len(channel) % hop + _WMSE_TAPS))
        frames = sliding_window_view(padded, _WMSE_BLOCK)[::hop]
        total = np.zeros(_WMSE_BLOCK // 2 + 1, np.complex128)
        for frame in frames:
            total += np.fft.rfft(frame[:hop], _WMSE_BLOCK).conj() * np.fft.rfft(frame)
        energies.append(weights @ np.fft.irfft(total)[:_WMSE_TAPS])
    return np.array(energies)


@lru_cache(maxsize=2)
def _hearing_weights(sample_rate: float) -> Array:
    """Return what each lag of a correlation counts, from 0 up.

    The package's filter is a file of 4000 taps; this is the response that they were made from: a
    shelf of 5 dB from 1.5 kHz and 2.5 dB around 500 Hz, less what is below 120 Hz and, twice, what
    is above 10 kHz. Its author sampled it at steps of 1/4097 of the band, not 1/4096.
    """
    from scipy import signal

    hz = np.fft.rfftfreq(_WMSE_BLOCK, 1 / sample_rate)
    low: Any = signal.butter(1, 10_000, fs=_WMSE_RATE, output="sos")
    high: Any = signal.butter(2, 120, "highpass", fs=_WMSE_RATE, output="sos")
    filters = np.concatenate([low, low, high, [_shelf(1500, 5.0), _peak(500, 2.5, 1.5)]])
    response = signal.sosfreqz(filters, worN=2 * np.pi * hz / _WMSE_RATE * 4096 / 4097)[1]
    weights = np.fft.irfft(np.where(hz <= _WMSE_RATE / 2, np.abs(response) ** 2, 0))
    weights[1:] *= 2  # a lag counts for both directions
    return weights[:_WMSE_TAPS]


def _shelf(hz: float, gain_db: float) -> list[float]:
    """Return a high shelf of Bristow-Johnson's cookbook as a section of a filter, q 1/sqrt(2)."""
    gain, (sine, cosine) = 10 ** (gain_db / 40), _turn(hz)
    slope = np.sqrt(2 * gain) * sine
    plus, minus = gain + 1, gain - 1
    above = plus + minus * cosine, -2 * (minus + plus * cosine)
    below = plus - minus * cosine, 2 * (minus - plus * cosine)
    first = below[0] + slope
    taps = [gain * (above[0] + slope), gain * above[1], gain * (above[0] - slope)]
    return [t / first for t in (*taps, first, below[1], below[0] - slope)]


def _peak(hz: float, gain_db: float, width: float) -> list[float]:
    """Return a peak of the same cookbook, q ``width``/sqrt(2)."""
    gain, (sine, cosine) = 10 ** (gain_db / 40), _turn(hz)
    alpha = sine / (np.sqrt(2) * width)
    first, up = 1 + alpha / gain, alpha * gain
    return [t / first for t in (1 + up, -2 * cosine, 1 - up, first, -2 * cosine, 2 - first)]


def _turn(hz: float) -> tuple[float, float]:
    angle = 2 * np.pi * hz / _WMSE_RATE
    return np.sin(angle), np.cos(angle)


def bleedless_fullness(references: Any, estimates: Any, sample_rate: float) -> Array:
    """Return how little of other sounds and how much of its own a source has; 100 is perfect.

    100 / (1 + d) with d the mean of the differences of level in dB, estimate - reference, that are
    above zero (bleedless), and of those below, without their sign (fullness). Levels are those of
    512 mel bands, each down to 80 dB below the loudest.

    Args:
        references: [source, channel, sample].
        estimates: of the same shape.
        sample_rate: in Hz.

    Returns:
        [bleedless and fullness, source] float64.

    Source:
        Music-Source-Separation-Training, ``bleed_full``.
    """
    true, ours = same_shape(references, estimates)
    scores = np.empty((2, len(true)))
    for index, (reference, estimate) in enumerate(zip(true, ours, strict=True)):
        difference = _levels(estimate, sample_rate) - _levels(reference, sample_rate)
        for row, beyond in enumerate((difference[difference > 0], -difference[difference < 0])):
            mean = beyond.mean() if len(beyond) else 0.0
            scores[row, index] = 100 / (1 + mean)
    return scores


def _levels(wave: Array, sample_rate: float) -> Array:
    """Return the levels [band, channel x frame] of ``wave`` [channel, sample] in dB."""
    parts = [bands for channel in wave for bands in _bands(channel, sample_rate)]
    levels = 20 * np.log10(np.maximum(np.concatenate(parts, axis=1), _FLOOR))
    return np.maximum(levels, levels.max() - _RANGE_DB)


def _bands(channel: Array, sample_rate: float) -> Iterator[Array]:
    """Yield the magnitudes [band, frame] of some frames after the other."""
    from scipy.signal import get_window

    padded = np.pad(channel.astype(np.float64), _N_FFT // 2)
    window = get_window("hann", _N_FFT)
    frames = sliding_window_view(padded, _N_FFT)[::_HOP]
    for begin in range(0, len(frames), _FRAMES):
        spectra = np.fft.rfft(frames[begin : begin + _FRAMES] * window)
        yield _mel_bands(sample_rate) @ np.sqrt(spectra.real**2 + spectra.imag**2).T


@lru_cache(maxsize=2)
def _mel_bands(sample_rate: float) -> csr_array:
    """Return triangles [band, bin] of equal area on Slaney's mel scale: linear up to 1 kHz."""
    from scipy.sparse import csr_array

    linear, step = 1000.0 / 15, np.log(6.4) / 27  # 15 mel in 1 kHz, then 27 for each factor 6.4
    highest = 15 + np.log(sample_rate / 2 / 1000) / step
    mel = np.linspace(0, highest, _BANDS + 2)
    edges = np.where(mel < 15, linear * mel, 1000 * np.exp(step * (mel - 15)))
    hz = np.fft.rfftfreq(_N_FFT, 1 / sample_rate)
    widths = np.diff(edges)[:, None]
    up, down = (hz - edges[:-2, None]) / widths[:-1], (edges[2:, None] - hz) / widths[1:]
    triangles = np.clip(np.minimum(up, down), 0, None) * 2 / (edges[2:] - edges[:-2])[:, None]
    return csr_array(triangles)
