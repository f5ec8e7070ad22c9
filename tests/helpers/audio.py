"""Small signals, audio files and networks for the tests of reading, separating and writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from lasaft.audio import AudioWriter, Encoding, Samples
from lasaft.card import CARDS
from lasaft.config import ModelConfig
from lasaft.files import atomic_path
from lasaft.network.model import LaSAFT

RATE = 44100


def noise(channels: int, samples: int, seed: int = 0, scale: float = 0.1) -> Samples:
    """White noise [channel, sample]."""
    values = np.random.default_rng(seed).standard_normal((channels, samples))
    return (scale * values).astype(np.float32)


def tone(hertz: float, seconds: float, rate: int = RATE, channels: int = 2) -> Samples:
    """A sine of amplitude 0.5 [channel, sample]."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * hertz * time)
    return np.tile(wave, (channels, 1)).astype(np.float32)


def write(path: Path, audio: np.ndarray, rate: int = RATE, **options: Any) -> Path:
    """Write audio [channel, sample] with soundfile itself; wav files as float."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".wav":
        options.setdefault("subtype", "FLOAT")
    soundfile.write(path, audio.T, rate, **options)
    return path


def read(path: Path) -> Samples:
    """Read audio [channel, sample] with soundfile itself."""
    return np.asarray(soundfile.read(path, always_2d=True)[0].T, np.float32)


def write_audio(path: Path, audio: Samples, sample_rate: int, encoding: Encoding) -> AudioWriter:
    """Write ``audio`` [channel, sample]; the closed writer returned knows peak and clipping."""
    with (
        atomic_path(path) as temporary,
        AudioWriter(
            temporary, sample_rate, len(audio), encoding, frames=audio.shape[1], shown=path
        ) as writer,
    ):
        writer.write(audio)
    return writer


def files_of(folder: Path) -> list[str]:
    """The files below ``folder`` but for cards, by their paths in it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != CARDS)
    return sorted(str(path.relative_to(folder)) for path in files)


def tiny_config(**options: Any) -> ModelConfig:
    """A network of a few thousand weights with half a second as its window."""
    values: dict[str, Any] = {
        "n_fft": 256, "hop_length": 128, "num_frame": 192, "n_blocks": 3, "internal_channels": 4,
        "n_internal_layers": 2, "min_bn_units": 8, "dk": 8, "num_tdfs": 3, "embedding_dim": 8,
        "control_n_layer": 2,
    }  # fmt: skip
    return ModelConfig(**{**values, **options})


def tiny_model(seed: int = 0, **options: Any) -> LaSAFT:
    """A network with random weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LaSAFT(tiny_config(**options)).eval()
