"""Frames of a track, and what is measured in them without filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lasaft.errors import AudioError
from lasaft.metrics.signals import PIECE, Array, Signals, as_signals


@dataclass(frozen=True)
class Frames:
    """``count`` frames of ``window`` samples, ``hop`` apart; the last lies within the track."""

    window: int
    hop: int
    count: int

    @classmethod
    def of_seconds(
        cls, sample_rate: float, window_seconds: float, hop_seconds: float, samples: int
    ) -> Frames:
        """Lay frames over ``samples``: a track no longer than a window is one frame."""
        for name, value in (("window_seconds", window_seconds), ("hop_seconds", hop_seconds)):
            if not value * sample_rate >= 1:
                raise AudioError(
                    f"{name} {value} at a sample rate of {sample_rate} Hz; "
                    "at least one sample is needed"
                )
        if window_seconds * sample_rate >= samples:
            return cls(samples, samples, 1)
        window = int(window_seconds * sample_rate)
        hop = int(min(hop_seconds * sample_rate, samples))
        return cls(window, hop, (samples - window + hop) // hop)

    def span(self, index: int) -> tuple[int, int]:
        """Return the first sample of a frame and the one after its last."""
        return index * self.hop, index * self.hop + self.window


def ratio_db(numerator: Array, denominator: Array) -> Array:
    """Return 10 log10 of a ratio; infinite where the denominator is zero, as in museval."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = 10 * np.log10(numerator / denominator)
    return np.where(denominator == 0, np.inf, value)


def frame_energies(signals: Signals, frames: Frames) -> tuple[Array, Array, Array]:
    """Return |s|^2 and |e - s|^2, each [source, frame], and which frames [frame] are silent."""
    true = np.zeros((signals.sources, frames.count))
    error = np.zeros_like(true)
    silent = np.zeros(frames.count, bool)
    for index in range(frames.count):
        start, stop = frames.span(index)
        silent[index] = signals.any_silent(start, stop)
        for begin in range(start, stop, PIECE):
            end = min(stop, begin + PIECE)
            for row in range(signals.references):
                reference = np.ascontiguousarray(signals.read(row, begin, end))
                estimate = signals.read(signals.references + row, begin, end)
                difference = estimate - reference
                true[row // signals.channels, index] += reference @ reference
                error[row // signals.channels, index] += difference @ difference
    return true, error, silent


def frame_sdr(
    references: Any,
    estimates: Any,
    *,
    sample_rate: float = 44100,
    window_seconds: float = 1.0,
    hop_seconds: float = 1.0,
) -> Array:
    """Return the SDR of BSS Eval v4 in dB, frame by frame, without computing any filter.

    10 log10(sum s^2 / sum (e - s)^2), sums over the samples and channels of a frame. In version 4
    with images the filters cancel out of the SDR, so this equals ``bss_eval(...).sdr``.

    Args:
        references: [source, channel, sample], 1 to 100 sources; array, tensor or a sequence.
        estimates: the same sources; longer ones are cut, shorter ones end in silence.
        sample_rate: in Hz.
        window_seconds: length of a frame.
        hop_seconds: time from a frame to the next.

    Returns:
        [source, frame] float64; NaN and infinity as :func:`bss_eval` gives them.

    Raises:
        AudioError: as :func:`bss_eval`.
    """
    signals = as_signals(references, estimates)
    frames = Frames.of_seconds(sample_rate, window_seconds, hop_seconds, signals.samples)
    with np.errstate(invalid="ignore"):  # infinity in an estimate, dealt with below
        true, error, silent = frame_energies(signals, frames)
    finite = np.array([_is_finite(signals, row) for row in range(len(signals.rows))])
    true_finite, finite = np.split(finite, 2)
    finite = np.all(finite.reshape(signals.sources, -1), axis=1) & np.all(true_finite)
    error[~finite] = np.nan
    sdr = ratio_db(true, error)
    sdr[:, silent] = np.nan
    return sdr


def _is_finite(signals: Signals, row: int) -> bool:
    begins = range(0, signals.samples, PIECE)
    return all(np.isfinite(signals.read(row, at, at + PIECE)).all() for at in begins)
