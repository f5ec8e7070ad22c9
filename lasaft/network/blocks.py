"""The intermediate block of every network, and the convolutions it is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lasaft.config import ModelConfig
from lasaft.network.activations import activation
from lasaft.network.frequency import TDF, bottleneck, build_frequency
from lasaft.network.modulations import Condition, build_modulation
from lasaft.network.norms import norm_2d

# Where a sum of convolutions is faster than one over a concatenation, which needs fewer launches.
SUMS_ON = ("cpu",)


class ConvNorm(nn.Module):
    """A convolution, a normalisation, an activation."""

    def __init__(
        self, conv: nn.Conv2d | nn.ConvTranspose2d, act: str = "identity", norm: str = "bn"
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm_2d(norm, conv.out_channels)
        self.activation = activation(act)

    def forward(
        self, x: Float[Tensor, "batch inner frame bin"]
    ) -> Float[Tensor, "batch outer frames bins"]:
        """Apply the three in turn."""
        return self.activation(self.norm(self.conv(x)))


class DenseConvolutions(nn.Module):
    """Densely connected convolutions: each sees the block's inputs and all before it.

    The weights are those of convolutions over concatenations, newest first. On a CPU nothing is
    concatenated: a convolution over a concatenation is a sum of convolutions, which needs less
    memory and moves less of it.

    Args:
        inputs: channels of each of the block's inputs, in order.
        growth: channels that each layer makes.
        kernel: frames and bins, odd.

    Source: Choi et al., ISMIR 2020, section 3 (TFC; with one frame, TDC).
    """

    def __init__(
        self,
        inputs: Sequence[int],
        growth: int,
        layers: int,
        kernel: tuple[int, int],
        act: str,
        *,
        norm: str = "bn",
    ) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.growth = growth
        self.kernel = kernel
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.layers = nn.ModuleList(
            ConvNorm(
                nn.Conv2d(sum(inputs) + layer * growth, growth, kernel, padding=padding), act, norm
            )
            for layer in range(layers)
        )

    def forward(
        self, *inputs: Float[Tensor, "batch _ frame bin"]
    ) -> Float[Tensor, "batch growth frame bin"]:
        """Return what the last layer makes."""
        seen = list(inputs)
        for layer in self.layers:
            seen.insert(0, self._convolve(layer, seen))
        return seen[0]

    def _convolve(self, layer: nn.Module, seen: list[Tensor]) -> Tensor:
        assert isinstance(layer, ConvNorm)
        conv, kind = layer.conv, seen[0].device.type
        if kind not in SUMS_ON:
            return layer(torch.cat(seen, dim=1))
        sizes = [x.shape[1] for x in seen]
        # Cast as a whole: autocast would cast every part by itself, at every use.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        weights = conv.weight.to(dtype or conv.weight.dtype).split(sizes, dim=1)
        total = None
        for x, weight in zip(seen, weights, strict=True):
            bias = conv.bias if total is None else None
            part = functional.conv2d(x, weight, bias, padding=conv.padding)
            total = part if total is None else total.add_(part)
        return layer.activation(layer.norm(total))


class TDFMixing(nn.Module):
    """The block of TDF nets: a TDF on each channel, and a 1x1 convolution if channels differ.

    The normalisation has scale and offset only where the linear layers have biases.

    Source: Choi et al., ISMIR 2020, section 3 (TDF).
    """

    def __init__(self, config: ModelConfig, inputs: Sequence[int], bins: int) -> None:
        super().__init__()
        self.tdf = TDF(
            sum(inputs),
            (bins, bins),
            bottleneck(config, bins),
            config.block_activation,
            bias=config.bias,
            affine=config.bias,
            norm=config.norm,
        )
        same = sum(inputs) == config.internal_channels
        self.adjust = nn.Identity() if same else nn.Conv2d(sum(inputs), config.internal_channels, 1)

    def forward(
        self, *inputs: Float[Tensor, "batch _ frame bin"]
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Transform the concatenated inputs."""
        return self.adjust(self.tdf(torch.cat(inputs, dim=1)))


class Block(nn.Module):
    """Mixing -> modulation -> + frequency transform: the intermediate block of every network.

    Args:
        inputs: channels of each of the inputs, in order.
        bins: frequency bins at this level.
        number: which block it is (encoders, middle, decoders).

    Source: arXiv 2010.11631, figure 2.
    """

    def __init__(self, config: ModelConfig, inputs: Sequence[int], bins: int, number: int) -> None:
        super().__init__()
        self.mixing = build_mixing(config, inputs, bins)
        self.modulation = build_modulation(config, bins, number)
        self.frequency = build_frequency(config, bins, number)

    def forward(
        self, inputs: tuple[Tensor, ...], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return the block's features [batch, internal_channels, frame, bin]."""
        x = self.mixing(*inputs)
        x = self.modulation(x, condition)
        return self.frequency(x, condition)


def build_mixing(config: ModelConfig, inputs: Sequence[int], bins: int) -> nn.Module:
    """Return the part of a block that mixes its inputs."""
    if config.block == "tdf":
        return TDFMixing(config, inputs, bins)
    return DenseConvolutions(
        inputs,
        config.internal_channels,
        config.n_internal_layers,
        (1 if config.block.startswith("tdc") else config.kernel_size_t, config.kernel_size_f),
        config.block_activation,
        norm=config.norm,
    )
