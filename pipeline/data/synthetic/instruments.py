"""Timbres of the chord instruments, as sums of decaying partials."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.data.synthetic.tones import Array, hertz, partials


def instrument(rng: np.random.Generator, name: str, sample_rate: int) -> Callable[[int], Array]:
    """Return what makes the sound of a MIDI pitch: float64 [sample], at velocity 1."""
    order = np.arange(1.0, 21.0)
    bite = rng.uniform(0.8, 1.2)
    if name == "keys":  # an electric piano: soft body, a short bright tine
        ratios = np.array([1, 2, 3, 4, 5, 7.1, 14.2])
        levels = np.array([1, 0.45, 0.25, 0.12, 0.06, 0.12 * bite, 0.08 * bite])
        decays = np.array([1.3, 0.9, 0.6, 0.5, 0.4, 0.12, 0.06])
    elif name == "bells":
        ratios = np.array([1, 2.0, 2.76, 4.07, 5.4, 8.93])
        levels = np.array([1, 0.3, 0.5, 0.25, 0.2, 0.1]) * 0.8
        decays = np.array([0.9, 0.7, 0.5, 0.35, 0.25, 0.12])
    elif name == "organ":
        ratios = np.array([0.5, 1, 1.5, 2, 3, 4, 6, 8])
        levels = np.array([0.4, 1, 0.3, 0.5, 0.35, 0.25, 0.12 * bite, 0.1 * bite]) * 0.6
        decays = np.full(8, 20.0)
    else:  # strings: a picked guitar, or the shorter pluck of the arpeggio
        where = rng.uniform(0.1, 0.35)
        ring = rng.uniform(0.9, 1.6) if name == "guitar" else rng.uniform(0.2, 0.6)
        ratios = order * np.sqrt(1 + 1e-4 * order**2)
        levels = np.sin(np.pi * where * order) / order ** (1.5 - 0.3 * bite)
        decays = ring / (1 + 0.03 * order**2)
    attack = np.minimum(1.0, np.arange(round(3.0 * sample_rate)) / (0.004 * sample_rate))

    def strike(pitch: int) -> Array:
        wave = partials(hertz(pitch) * ratios, levels, decays, attack.size, sample_rate)
        return 0.5 * wave * attack

    return strike
