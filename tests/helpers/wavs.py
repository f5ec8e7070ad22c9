"""Tracks of noise written as wav files, well formed or with a fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from pipeline.data.songs.checks import Findings, examine_tracks, fault_lines
from pipeline.data.songs.tracks import Track

STEMS = ("vocals", "drums", "bass", "other", "mixture")


def noise(seconds: float, channels: int = 2, seed: int = 0, rate: int = 44100) -> np.ndarray:
    """Return int16 noise [sample, channel]."""
    random = np.random.default_rng(seed)
    return random.integers(-9000, 9000, (int(seconds * rate), channels), dtype=np.int16)


def write_track(
    folder: Path,
    seconds: float = 1.0,
    stems: tuple[str, ...] = STEMS,
    subtype: str = "PCM_16",
    first_seed: int = 0,
) -> Path:
    """Write a track folder of stereo noise, another noise in each stem, and return it."""
    folder.mkdir(parents=True)
    for seed, stem in enumerate(stems, first_seed):
        audio = noise(seconds, seed=seed)
        data = audio if subtype == "PCM_16" else audio.astype(np.float32) / 32768
        soundfile.write(str(folder / f"{stem}.wav"), data, 44100, subtype=subtype)
    return folder


def examined(root: Path, tracks: list[Track]) -> list[Findings]:
    """Return what the checks of a data set find, for stereo at 44100 Hz."""
    return examine_tracks(tracks, root=root)


def faults_in(root: Path, tracks: list[Track]) -> list[str]:
    """Return the lines of all faults."""
    return fault_lines(tracks, examined(root, tracks))
