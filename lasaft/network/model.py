"""The whole model: spectrogram, conditioned U-Net, mapping or masking, and back to audio."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lasaft.config import ModelConfig
from lasaft.network.conditioning import Wanted
from lasaft.network.spectrogram import Spectrogram
from lasaft.network.unet import UNet


class LaSAFT(nn.Module):
    """A conditioned source separator built from its config.

    Args:
        config: every choice about the network; see :class:`lasaft.ModelConfig`.

    Source: Choi et al., LaSAFT: Latent Source Attentive Frequency Transformation for Conditioned
    Source Separation, arXiv 2010.11631.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.spectrogram = Spectrogram(config.n_fft, config.hop_length)
        self.network = UNet(config)
        initialise(self.network, config.resolved_initializer)

    def network_input(
        self, mixture_spec: Float[Tensor, "batch plane frame bin"]
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return what the network sees: the complex planes, or the magnitudes."""
        if self.config.spec_type == "magnitude":
            return self.spectrogram.magnitude(mixture_spec)
        return mixture_spec

    def estimate(
        self, mixture_spec: Float[Tensor, "batch plane frame bin"], condition: Wanted
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Estimate the chosen sources in the network's domain.

        Args:
            mixture_spec: complex planes as channels; frames a multiple of
                ``config.time_reduction``.
            condition: for each item, an index into ``config.sources``; of a network with
                ``control_vector_type multi_hot`` also a row of ones (the sources wanted) and zeros.

        Returns:
            Complex planes as channels, or magnitudes if ``config.spec_type`` is magnitude.
        """
        seen = self.network_input(mixture_spec)
        return self.to_estimate(self.network(seen, condition), seen)

    def to_estimate(
        self,
        output: Float[Tensor, "batch channel frame bin"],
        seen: Float[Tensor, "#batch channel frame bin"],
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Turn the network's output into an estimate: as it is, or as a mask for its input.

        A mask acts on each plane by itself: on complex spectrograms it is no complex product.
        """
        return output * seen if self.config.spec_est_mode == "masking" else output

    def to_spectrogram(
        self,
        estimate: Float[Tensor, "batch channel frame bin"],
        mixture_spec: Float[Tensor, "batch plane frame bin"],
    ) -> Float[Tensor, "batch plane frame bin"]:
        """Return complex planes; magnitudes take the mixture's phase."""
        if self.config.spec_type == "magnitude":
            return self.spectrogram.with_phase(estimate, mixture_spec)
        return estimate

    def forward(
        self, mixture: Float[Tensor, "batch channel sample"], condition: Wanted
    ) -> Float[Tensor, "batch channel sample"]:
        """Separate one source, or the sum of a set of them, from each mixture.

        Args:
            mixture: audio of ``config.audio_channels`` channels; 1 + samples // hop_length must
                be a multiple of ``config.time_reduction``.
            condition: as for :meth:`estimate`.
        """
        spec = self.spectrogram.stft(mixture)
        estimate = self.to_spectrogram(self.estimate(spec, condition), spec)
        return self.spectrogram.istft(estimate, mixture.shape[-1])


@torch.no_grad()
def initialise(network: nn.Module, law: str) -> None:
    """Draw every weight of two or more dimensions from one normal law; leave the rest.

    The law is that of xavier, or of kaiming for a rectifier. Embeddings and attention keys are
    drawn by the same law as the authors do it: the published results come from this start.
    """
    for parameter in network.parameters():
        if parameter.dim() < 2 or parameter.is_meta:
            continue
        if law == "kaiming":
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.xavier_normal_(parameter)
