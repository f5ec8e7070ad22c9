"""Short excerpts of a few songs: what the report plays without a model or the data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from lasaft.files import atomic_path, atomic_write_json, publish_folder

EXCERPTS = "excerpts"  # the folder beside those of kept estimates
EXCERPT_FILE = "excerpt.json"
MIXTURE_FILE = "mixture.wav"
REFERENCE_FOLDER = "reference"
_SECONDS = 7.0


def spread(names: Sequence[str], count: int) -> list[str]:
    """Return ``count`` of ``names``, evenly spread over their sorted list (all, if fewer)."""
    ordered = sorted(names)
    count = min(count, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


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


def write_references(
    folder: Path, track: str, mixture: np.ndarray, references: Mapping[str, np.ndarray], rate: int
) -> None:
    """Write the mixture and the references of an excerpt.

    Args:
        folder: of this song.
        track: its name.
        mixture: [channel, sample] of the whole track.
        references: [channel, sample] of each source.
        rate: sample rate in Hz.
    """
    stretch = excerpt_stretch(references, rate)
    with atomic_path(folder / MIXTURE_FILE) as fresh:
        _write(fresh, mixture[:, stretch], rate)
    write_estimates(folder, REFERENCE_FOLDER, references, stretch, rate)
    facts: dict[str, Any] = {
        "track": track,
        "start_seconds": stretch.start / rate,
        "seconds": (stretch.stop - stretch.start) / rate,
        "sample_rate": rate,
        "sources": list(references),
    }
    atomic_write_json(folder / EXCERPT_FILE, facts)


def write_estimates(
    folder: Path, system: str, waves: Mapping[str, np.ndarray], stretch: slice, rate: int
) -> None:
    """Write the excerpt of each of a system's ``waves`` [channel, sample] as 16-bit WAV."""
    with publish_folder(folder / system) as fresh:
        for source, wave in waves.items():
            part = wave[:, stretch]
            missing = stretch.stop - stretch.start - part.shape[1]  # of an estimate that ends early
            padded = np.pad(part, ((0, 0), (0, missing)))
            _write(fresh / f"{source}.wav", padded, rate)


def _write(path: Path, wave: np.ndarray, rate: int) -> None:
    soundfile.write(path, np.clip(wave.T, -1, 1), rate, subtype="PCM_16", format="WAV")
