"""What a network has learnt, to hear and to see: an excerpt of a song and its spectrograms."""

from __future__ import annotations

import io

import numpy as np
import soundfile
import torch
from torch import Tensor

from pipeline.data.songs.stretch import excerpt_stretch

_N_FFT = 2048
_RANGE_DB = 80.0


class Excerpts:
    """Collects the audio, at ``rate`` Hz, of one song's targets and makes an excerpt of it."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._waves: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, target: str, truth: Tensor, estimate: Tensor) -> None:
        """Take a target in: truth and estimate [channel, sample]."""
        self._waves[target] = truth.numpy(), estimate.numpy()

    def files(self, title: str) -> dict[str, bytes]:
        """Return for each target ``<target>.flac``, ``<target>_true.flac`` and ``<target>.png``.

        Args:
            title: stands above the pictures.
        """
        if not self._waves:
            return {}
        stretch = excerpt_stretch({k: truth for k, (truth, _) in self._waves.items()}, self._rate)
        files: dict[str, bytes] = {}
        for target, waves in self._waves.items():
            truth, estimate = (np.clip(wave[:, stretch], -1, 1) for wave in waves)
            for name, wave in ((target, estimate), (f"{target}_true", truth)):
                files[f"{name}.flac"] = _flac(wave, self._rate)
            picture = {f"{target}, {title}": estimate, f"{target}, the true source": truth}
            files[f"{target}.png"] = _draw(picture, self._rate)
        return files


def _flac(wave: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave.T, rate, subtype="PCM_16", format="FLAC")
    return file.getvalue()


def _draw(waves: dict[str, np.ndarray], rate: int) -> bytes:
    """Draw the spectrograms of ``waves`` [channel, sample] below each other, on one scale."""
    from matplotlib.figure import Figure

    levels = {title: _level(wave) for title, wave in waves.items()}
    loudest = max(float(level.max()) for level in levels.values())
    figure = Figure(figsize=(8, 5), layout="constrained")
    rows = figure.subplots(len(levels), sharex=True)
    for axes, (title, level) in zip(rows, levels.items(), strict=True):
        seconds = waves[title].shape[1] / rate
        image = axes.imshow(
            level, origin="lower", aspect="auto", cmap="magma", interpolation="nearest",
            vmin=loudest - _RANGE_DB, vmax=loudest, extent=(0, seconds, 0, rate / 2000),
        )  # fmt: skip
        axes.set(title=title, ylabel="kHz")
        figure.colorbar(image, ax=axes, label="dB")
    rows[-1].set_xlabel("seconds of the excerpt")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80, metadata={"Software": None})
    return file.getvalue()


def _level(wave: np.ndarray) -> np.ndarray:
    """Return the level [bin, frame] of the mean of the channels in dB."""
    size = min(_N_FFT, 2 ** int(np.log2(max(wave.shape[1], 32))))
    mono = torch.from_numpy(wave.mean(axis=0))
    spectrum = torch.stft(
        mono, size, size // 2, window=torch.hann_window(size), return_complex=True,
        pad_mode="constant",
    )  # fmt: skip
    return (10 * torch.log10(spectrum.abs().square() + 1e-10)).numpy()
