"""The short-time Fourier transform, with complex numbers as pairs of channels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lasaft.errors import AudioError


class Spectrogram(nn.Module):
    """STFT and its inverse: periodic Hann window, centred, reflect padding, not normalised.

    A complex spectrogram is real: its channels are the real parts of the audio channels, then
    their imaginary parts (stereo: re-left, re-right, im-left, im-right).

    Args:
        n_fft: window and transform size in samples, even; there are n_fft / 2 + 1 bins.
        hop_length: step in samples, at most n_fft / 2.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        # Not in the state dict: it follows from n_fft. With values even where weights have none.
        self.register_buffer("window", torch.hann_window(n_fft, device="cpu"), persistent=False)

    def stft(
        self, wave: Float[Tensor, "batch channel sample"]
    ) -> Float[Tensor, "batch plane frame bin"]:
        """Transform audio into 1 + samples // hop_length frames.

        Raises:
            AudioError: the audio is not longer than n_fft / 2, which the padding reflects.
        """
        batch, channels, samples = wave.shape
        if samples <= self.n_fft // 2:
            raise AudioError(
                f"waveform: got {samples} samples, allowed: more than {self.n_fft // 2} "
                f"(half of n_fft {self.n_fft})"
            )
        flat = torch.stft(
            wave.reshape(batch * channels, samples),
            self.n_fft,
            self.hop_length,
            window=self.window.to(wave.dtype),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        spec = flat.view(batch, channels, *flat.shape[1:]).transpose(2, 3)
        return torch.cat((spec.real, spec.imag), dim=1)

    def istft(
        self, spec: Float[Tensor, "batch plane frame bin"], length: int
    ) -> Float[Tensor, "batch channel sample"]:
        """Transform back to ``length`` samples."""
        batch, planes, frames, bins = spec.shape
        # The inverse transform has no half-precision kernels.
        spec = spec if spec.dtype == torch.float64 else spec.float()
        flat = as_complex(spec).transpose(2, 3).reshape(batch * planes // 2, bins, frames)
        wave = torch.istft(
            flat,
            self.n_fft,
            self.hop_length,
            window=self.window.to(spec.dtype),
            center=True,
            length=length,
        )
        return wave.view(batch, planes // 2, length)

    @staticmethod
    def magnitude(
        spec: Float[Tensor, "batch plane frame bin"],
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return the absolute values."""
        return as_complex(spec).abs()

    @staticmethod
    def with_phase(
        magnitude: Float[Tensor, "batch channel frame bin"],
        mixture_spec: Float[Tensor, "batch plane frame bin"],
    ) -> Float[Tensor, "batch plane frame bin"]:
        """Give ``magnitude`` the mixture's phase (0 where the mixture is silent)."""
        real, imag = mixture_spec.chunk(2, dim=1)
        size = Spectrogram.magnitude(mixture_spec)
        silent = size == 0
        size = size.masked_fill(silent, 1.0)
        cosine = (real / size).masked_fill(silent, 1.0)
        return torch.cat((magnitude * cosine, magnitude * (imag / size)), dim=1)


def as_complex(spec: Float[Tensor, "batch plane frame bin"]) -> Tensor:
    """Return the complex tensor [batch, channel, frame, bin] that ``spec`` stands for."""
    real, imag = spec.chunk(2, dim=1)
    return torch.complex(real, imag)
