"""Sound from numbers: oscillators, struck strings, ensembles, and filters that move in time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Array = NDArray[np.float64]


def hertz(pitch: float | Array) -> Array:
    """Return the frequency in Hz of MIDI pitches (69 is 440 Hz), in the same shape."""
    return 440.0 * 2.0 ** ((np.asarray(pitch, np.float64) - 69.0) / 12.0)


def add_at(track: Array, sound: Array, start: int) -> None:
    """Add ``sound`` [..., length] to ``track`` [..., sample] in place; what hangs over is cut."""
    skip = max(0, -start)
    end = min(track.shape[-1], start + sound.shape[-1])
    if end > start + skip:
        track[..., start + skip : end] += sound[..., skip : end - start]


def saw(frequency: Array, sample_rate: int) -> tuple[Array, Array]:
    """Return a sawtooth in -1 to 1 and its phase in cycles, both [sample].

    ``frequency`` [sample] in Hz may glide. The wave is the slope of a parabola, which keeps the
    aliases far lower than the plain ramp's.
    Source: Valimaki, "Discrete-time synthesis of the sawtooth waveform", 2005.
    """
    step = frequency / sample_rate
    phase = np.cumsum(step)
    phase -= np.floor(phase)
    parabola = (2.0 * phase - 1.0) ** 2
    wave = np.empty_like(parabola)
    wave[0] = 0.0
    np.subtract(parabola[1:], parabola[:-1], out=wave[1:])
    return wave / (4.0 * step), phase


def partials(
    frequencies: Array, amplitudes: Array, decays: Array, samples: int, sample_rate: int
) -> Array:
    """Return a sum of decaying sines that start at zero, [sample].

    Args:
        frequencies: Hz, [partial]; those above the Nyquist frequency are left out.
        amplitudes: [partial].
        decays: seconds until a partial has fallen to 1/e, [partial].
        samples: length.
        sample_rate: Hz.

    A sine at sample ``a * block + b`` is the product of one factor of ``a`` and one of ``b``, so
    two short tables take the place of ``samples`` sines. Plain einsum keeps BLAS out, whose
    sums depend on the number of threads.
    """
    keep = frequencies < 0.45 * sample_rate
    rate = (2j * np.pi * frequencies[keep] - 1.0 / decays[keep]) / sample_rate
    block = max(1, math.isqrt(samples))
    coarse = np.arange(-(-samples // block)) * block
    outer = np.exp(coarse[:, None] * rate) * amplitudes[keep]
    inner = np.exp(rate[:, None] * np.arange(block))
    wave = np.einsum("ak,kb->ab", np.real(outer), np.imag(inner))
    wave += np.einsum("ak,kb->ab", np.imag(outer), np.real(inner))
    return wave.reshape(-1)[:samples]


def ensemble(
    rng: np.random.Generator, frequencies: Array, amplitudes: Array, size: int, sample_rate: int
) -> Array:
    """Return a seamless loop of a string-like ensemble, [channel, sample] with 2 channels.

    Every partial is a narrow band of noise, as many players make it; both channels have their
    own phases, which makes it wide.
    Source: Nasca Octavian Paul, "PADsynth algorithm", 2005.

    Args:
        frequencies: Hz, [partial].
        amplitudes: [partial].
        size: samples of the loop.
    """
    bins = np.arange(size // 2 + 1, dtype=np.float64)
    magnitude = np.zeros(bins.size)
    for frequency, amplitude in zip(frequencies, amplitudes, strict=True):
        centre = frequency * size / sample_rate
        width = max(1.0, 0.006 * centre)  # about 10 cents to each side
        low, high = int(max(1, centre - 4 * width)), int(centre + 4 * width) + 1
        if high < bins.size:
            shape = np.exp(-(((bins[low:high] - centre) / width) ** 2))
            magnitude[low:high] += amplitude * shape / math.sqrt(width)
    phases = rng.uniform(0, 2 * np.pi, (2, bins.size))
    loop = np.fft.irfft(magnitude * np.exp(1j * phases), size)
    return loop / np.sqrt(np.mean(loop**2))


def band(
    sound: Array, sample_rate: int, low: float | None = None, high: float | None = None
) -> Array:
    """Return ``sound`` [..., sample] between ``low`` and ``high`` Hz (second order slopes)."""
    if low and high:
        edges, kind = [low, high], "bandpass"
    else:
        edges, kind = low or high, "highpass" if low else "lowpass"
    sections = signal.butter(2, edges, kind, fs=sample_rate, output="sos")
    return np.asarray(signal.sosfilt(sections, sound))


def low_pole(sound: Array, pole: float) -> Array:
    """Return ``sound`` [sample] smoothed by one pole: ``y[n] = pole y[n-1] + (1 - pole) x[n]``."""
    return np.asarray(signal.lfilter([1.0 - pole], [1.0, -pole], sound))


def moving_filter(sound: Array, response: Array, size: int) -> Array:
    """Filter ``sound`` [sample] by a gain that changes with time.

    Args:
        sound: [sample].
        response: real gain, [frame, bin]: ``moving_frames(len(sound), size)`` frames that are
            half of ``size`` apart, ``size // 2 + 1`` bins.
        size: samples of a frame.

    Returns:
        [sample], cross-faded between frames by sine windows on both sides.
    """
    hop = size // 2
    frames = moving_frames(sound.size, size)
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size)
    padded = np.zeros((frames + 1) * hop)
    padded[hop : hop + sound.size] = sound
    cut = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * window
    shaped = np.fft.irfft(np.fft.rfft(cut, axis=1) * response, size, axis=1) * window
    result = np.zeros((frames + 1, hop))
    result[:-1] += shaped[:, :hop]
    result[1:] += shaped[:, hop:]
    return result.reshape(-1)[hop : hop + sound.size]


def moving_frames(samples: int, size: int) -> int:
    """Return how many frames :func:`moving_filter` wants for ``samples``."""
    return -(-samples // (size // 2)) + 1


def control(times: list[float], values: list[float], samples: int, sample_rate: int) -> Array:
    """Return straight lines between points (seconds, value), [sample]; times may repeat."""
    order = np.argsort(times, kind="stable")
    clock = np.arange(samples) / sample_rate
    return np.interp(clock, np.array(times)[order], np.array(values)[order])
