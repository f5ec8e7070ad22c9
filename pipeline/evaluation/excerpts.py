"""Short excerpts of a few songs: what the report plays without a model or the data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from lasaft.files import atomic_path, atomic_write_json, publish_folder
from pipeline.data.songs.stretch import excerpt_stretch

EXCERPTS = "excerpts"  # the folder beside those of kept estimates
EXCERPT_FILE = "excerpt.json"
MIXTURE_FILE = "mixture.wav"
REFERENCE_FOLDER = "reference"


def spread(names: Sequence[str], count: int) -> list[str]:
    """Return ``count`` of ``names``, evenly spread over their sorted list (all, if fewer)."""
    ordered = sorted(names)
    count = min(count, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def write_references(
    folder: Path, track: str, mixture: np.ndarray, references: Mapping[str, np.ndarray], rate: int
) -> None:
    """Write the mixture and the references of an excerpt.

    Args:
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
