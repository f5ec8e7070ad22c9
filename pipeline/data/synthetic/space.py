"""Places sounds between the speakers and in a room."""

from __future__ import annotations

import math

import numpy as np
from scipy import signal

from pipeline.data.synthetic.tones import Array, band


def pan(sound: Array, position: float) -> Array:
    """Return ``sound`` [sample] as [channel, sample] at ``position`` -1 (left) to 1 (right).

    Left and right keep the same summed power at every position.
    """
    angle = (position + 1.0) * math.pi / 4.0
    return np.stack([math.cos(angle) * sound, math.sin(angle) * sound])


def room_response(rng: np.random.Generator, seconds: float, sample_rate: int) -> Array:
    """Return the impulse response of a made-up room, [channel, sample], each of energy 1.

    Args:
        seconds: until the sound has fallen by 60 dB.
        sample_rate: Hz.
    """
    clock = np.arange(round(seconds * sample_rate)) / sample_rate
    noise = rng.normal(size=(2, clock.size)) * 10.0 ** (-3.0 * clock / seconds)
    # Walls swallow treble first: the late part is darker than the early part.
    dark = band(noise, sample_rate, low=150.0, high=3000.0)
    late = np.minimum(1.0, clock / (0.4 * seconds))
    tail = noise * (1.0 - late) * 0.5 + dark * (0.5 + late)
    delay = int(0.012 * sample_rate)
    response = np.concatenate([np.zeros((2, delay)), tail], axis=1)
    for _ in range(8):  # early reflections
        at = int(rng.uniform(0.004, 0.03) * sample_rate)
        response[int(rng.integers(2)), at] += rng.choice([-1.0, 1.0]) * rng.uniform(1.0, 3.0)
    return response / np.sqrt(np.sum(response**2, axis=1, keepdims=True))


def add_room(dry: Array, response: Array, wet: float) -> Array:
    """Return ``dry`` [channel, sample] with the room's answer at ``wet`` times its level."""
    send = dry.mean(axis=0)
    answer = np.stack([signal.oaconvolve(send, side)[: send.size] for side in response])
    return dry + wet * answer
