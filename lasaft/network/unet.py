"""The conditioned U-Net on spectrograms."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lasaft.config import ModelConfig
from lasaft.errors import ConfigError
from lasaft.network.activations import activation
from lasaft.network.blocks import Block, ConvNorm
from lasaft.network.conditioning import Conditioner, Wanted


class UNet(nn.Module):
    """First convolution, encoders, middle block, decoders with skips, last convolution.

    Source: arXiv 2010.11631, section 2.1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, levels = config.internal_channels, config.levels
        self.time_reduction = config.time_reduction
        self.conditioner = Conditioner(config)
        # Two bins wide without padding: an odd number of bins becomes an even one.
        self.first = ConvNorm(
            nn.Conv2d(config.resolved_input_channels, channels, (1, 2)),
            config.first_conv_activation,
            config.norm,
        )
        scales = [_scale(config, level) for level in range(levels)]

        def block(number: int, *inputs: int) -> Block:
            return Block(config, inputs, config.block_bins[number], number)

        self.encoders = nn.ModuleList(block(number, channels) for number in range(levels))
        after = config.scale_activation, config.norm
        self.downs = nn.ModuleList(
            ConvNorm(nn.Conv2d(channels, channels, scale, scale), *after) for scale in scales
        )
        self.middle = block(levels, channels)
        self.ups = nn.ModuleList(
            ConvNorm(nn.ConvTranspose2d(channels, channels, scale, scale), *after)
            for scale in reversed(scales)
        )
        self.decoders = nn.ModuleList(
            block(number, channels, channels) for number in range(levels + 1, config.n_blocks)
        )
        # Pads one bin on each side: the odd number of bins comes back.
        self.last = nn.Conv2d(channels, config.resolved_input_channels, (1, 2), padding=(0, 1))
        self.activation = activation(config.resolved_last_activation)

    def forward(
        self, spec: Float[Tensor, "batch channel frame bin"], wanted: Wanted
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Map a spectrogram to one of the same shape.

        Raises:
            ConfigError: the frame count is not a multiple of the time reduction.
        """
        self.check_frames(spec.shape[2])
        condition = self.conditioner(wanted)
        # Convolutions are faster with the channels innermost; whatever follows keeps that.
        x = self.first(spec.contiguous(memory_format=torch.channels_last))
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder((x,), condition)
            skips.append(x)
            x = down(x)
        x = self.middle((x,), condition)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder((up(x), skips.pop()), condition)
        return self.activation(self.last(x))

    def check_frames(self, frames: int) -> None:
        """Refuse a frame count that the U-Net cannot halve and double back."""
        if frames % self.time_reduction:
            raise ConfigError(
                f"num_frame: got {frames} frames, allowed: a multiple of {self.time_reduction}"
            )


def _scale(config: ModelConfig, level: int) -> tuple[int, int]:
    """By how much this level shrinks frames and bins."""
    return (2 if level in config.time_levels else 1, 2 if level in config.frequency_levels else 1)
