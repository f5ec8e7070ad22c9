"""The stretch of a song in which all sources sound: what excerpts and checks listen to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

_SECONDS = 7.0


def loudest_shared(references: np.ndarray, sample_rate: int, seconds: float = _SECONDS) -> slice:
    """Return the stretch in which the quietest source is as loud as possible.

    Args:
        references: [source, channel, sample].
        sample_rate: in Hz.
        seconds: length of the stretch; a shorter track is taken whole.

    Returns:
        A slice of samples, starting at a multiple of half a second.
    """
    samples = references.shape[-1]
    length = min(samples, round(seconds * sample_rate))
    step = max(1, sample_rate // 2)
    blocks = math.ceil(samples / step)
    energy = np.zeros((references.shape[0], blocks))
    for block in range(blocks):
        part = references[..., block * step : (block + 1) * step].astype(np.float64)
        energy[:, block] = (part**2).sum(axis=(1, 2))
    total = np.concatenate([np.zeros((len(energy), 1)), energy.cumsum(axis=1)], axis=1)
    width = max(1, length // step)
    starts = np.arange(max(1, (samples - length) // step + 1))
    windows = total[:, np.minimum(starts + width, blocks)] - total[:, starts]
    # Relative to the source's own level: otherwise a source that is mixed low decides alone.
    relative = windows / np.maximum(total[:, -1:], 1e-12)
    start = int(starts[relative.min(axis=0).argmax()]) * step
    return slice(start, start + length)


def excerpt_stretch(references: Mapping[str, np.ndarray], rate: int) -> slice:
    """Return the samples of the excerpt of a track with these references [channel, sample]."""
    return loudest_shared(np.stack(list(references.values())), rate)
