"""Transforms along the whole frequency axis: TDF, and LaSAFT and LightSAFT that attend."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lasaft.config import ModelConfig
from lasaft.network.activations import activation
from lasaft.network.listening import ListeningAttention
from lasaft.network.modulations import Condition
from lasaft.network.norms import norm_2d
from lasaft.parts import V2_BLOCKS


class FrequencyLayer(nn.Module):
    """A linear layer over the bins of every frame, a normalisation, an activation."""

    def __init__(
        self,
        channels: int,
        bins: tuple[int, int],
        act: str,
        *,
        bias: bool,
        affine: bool = True,
        norm: str = "bn",
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(*bins, bias=bias)
        self.norm = norm_2d(norm, channels, affine=affine)
        self.activation = activation(act)

    def forward(
        self, x: Float[Tensor, "batch channel frame bins"]
    ) -> Float[Tensor, "batch channel frame units"]:
        """Transform the last axis."""
        return self.activation(self.norm(self.linear(x)))


def bottleneck(config: ModelConfig, bins: int) -> int | None:
    """Units between ``bins`` inputs and as many outputs; None for a single layer."""
    if config.bn_factor is None:
        return None
    return max(bins // config.bn_factor, config.min_bn_units)


class TDF(nn.Sequential):
    """Time-distributed fully connected layers: squeeze the bins and expand them again.

    Args:
        bins: inputs and outputs.
        units: size of the bottleneck; None for a single layer.

    Source: Choi et al., ISMIR 2020, section 3 (TDF).
    """

    def __init__(
        self,
        channels: int,
        bins: tuple[int, int],
        units: int | None,
        act: str,
        *,
        bias: bool,
        affine: bool = True,
        norm: str = "bn",
    ) -> None:
        sizes = [bins] if units is None else [(bins[0], units), (units, bins[1])]
        options: Any = {"bias": bias, "affine": affine, "norm": norm}
        super().__init__(*(FrequencyLayer(channels, size, act, **options) for size in sizes))


def _tdf(config: ModelConfig, inputs: int, outputs: int) -> TDF:
    return TDF(
        config.internal_channels,
        (inputs, outputs),
        bottleneck(config, outputs),
        config.block_activation,
        bias=config.tfc_tdf_bias,
        norm=config.norm,
    )


def _layer(config: ModelConfig, inputs: int, outputs: int) -> FrequencyLayer:
    channels, act, bias = config.internal_channels, config.block_activation, config.tfc_tdf_bias
    return FrequencyLayer(channels, (inputs, outputs), act, bias=bias, norm=config.norm)


class Attention(nn.Module):
    """How much each latent source matters to a condition.

    Source: arXiv 2010.11631, section 2.3.
    """

    def __init__(self, condition_size: int, latent_sources: int, key_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(condition_size, key_size)
        self.keys = nn.Parameter(torch.randn(key_size, latent_sources))

    def forward(self, vector: Float[Tensor, "batch size"]) -> Float[Tensor, "batch latent"]:
        """Return weights that sum to 1."""
        scores = self.query(vector) @ self.keys
        return (scores / math.sqrt(len(self.keys))).softmax(dim=-1)


class Unchanged(nn.Module):
    """No frequency transform."""

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return ``x``."""
        return x


class ResidualTDF(nn.Module):
    """x + TDF(x), the same for every condition."""

    def __init__(self, config: ModelConfig, bins: int) -> None:
        super().__init__()
        self.tdf = _tdf(config, bins, bins)

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Add the transform of ``x`` to it."""
        return x + self.tdf(x)


class LaSAFTTransform(nn.Module):
    """x + the attended sum of one TDF for each latent source.

    All latent sources share one bottleneck; output f * K + k is bin f of latent source k.

    Source: arXiv 2010.11631, section 2.3.
    """

    def __init__(self, config: ModelConfig, bins: int) -> None:
        super().__init__()
        self.attention = Attention(config.condition_size, config.num_tdfs, config.dk)
        self.tdf = _tdf(config, bins, bins * config.num_tdfs)

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Add the attended transform of ``x`` to it."""
        assert condition.vector is not None
        weights = self.attention(condition.vector)
        values = self.tdf(x).unflatten(-1, (-1, weights.shape[-1]))
        return x + torch.matmul(values, weights[:, None, None, :, None]).squeeze(-1)


class LightSAFTTransform(nn.Module):
    """x + an expansion of the attended sum of the latent sources' bottlenecks.

    Unit k * u + j of the first layer is unit j of latent source k. With no bottleneck
    (bn_factor None) a latent source's units are its bins, and nothing is left to expand.

    Source: the authors' CUNET_TFC_GPoCM_LightSAFT.
    """

    def __init__(self, config: ModelConfig, bins: int) -> None:
        super().__init__()
        self.attention = Attention(config.condition_size, config.num_tdfs, config.dk)
        units = bottleneck(config, bins)
        self.squeeze = _layer(config, bins, config.num_tdfs * (units or bins))
        self.expand = _layer(config, units, bins) if units else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Add the attended transform of ``x`` to it."""
        assert condition.vector is not None
        weights = self.attention(condition.vector)
        values = self.squeeze(x).unflatten(-1, (weights.shape[-1], -1))
        attended = torch.matmul(weights[:, None, None, None, :], values).squeeze(-2)
        return x + self.expand(attended)


class ListeningTransform(nn.Module):
    """x + the sum of the latent sources that an attention weighs frame by frame.

    Outputs that latent sources share a layer with alternate: u * K + k is unit u of source k. With
    tfc_lightsaft_v2 they are bottlenecks, and their sum is expanded.

    Source: the authors' LASAFT-Net v2.
    """

    def __init__(self, config: ModelConfig, bins: int) -> None:
        super().__init__()
        self.attention = ListeningAttention(config, bins)
        units = bottleneck(config, bins) or bins
        light = config.block == "tfc_lightsaft_v2"
        of_all = config.num_tdfs * (units if light else bins)
        self.before = _layer(config, bins, of_all) if light else _tdf(config, bins, of_all)
        self.after = nn.Identity()
        if light and config.bn_factor is not None:
            self.after = nn.Sequential(
                norm_2d(config.norm, config.internal_channels),
                nn.Linear(units, bins, config.tfc_tdf_bias),
                activation(config.block_activation),
            )

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Add the attended transform of ``x`` to it."""
        assert condition.vector is not None
        weights = self.attention(x, condition.vector)
        values = self.before(x).unflatten(-1, (-1, weights.shape[-1]))
        return x + self.after(torch.matmul(values, weights[:, None, :, :, None]).squeeze(-1))


class RecurrentTDF(nn.Module):
    """y + TDF(GRU(y)) for y = norm(x): the GRU runs over the frames of each channel, both ways.

    Source: Choi et al., ISMIR 2020, section 3 (TDC-RNN, TFC-RNN).
    """

    def __init__(self, config: ModelConfig, bins: int) -> None:
        super().__init__()
        units = max(bins // config.bn_factor_rnn, config.min_bn_units_rnn)
        self.norm = norm_2d(config.norm, config.internal_channels)
        self.rnn = nn.GRU(bins, units, config.num_layers_rnn, batch_first=True, bidirectional=True)
        self.tdf = _tdf(config, 2 * units, bins)

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Add the transform of the normalised features to them."""
        x = self.norm(x)
        hidden, _ = self.rnn(x.flatten(0, 1))
        return x + self.tdf(hidden.unflatten(0, x.shape[:2]))


def build_frequency(config: ModelConfig, bins: int, block: int) -> nn.Module:
    """Return the frequency transform of the block with this number and so many bins."""
    attends = config.attentive_blocks[block]
    builders = {
        "tfc_tdf": ResidualTDF,
        "tfc_lasaft": LaSAFTTransform,
        "tfc_lightsaft": LightSAFTTransform,
        **dict.fromkeys(V2_BLOCKS, ListeningTransform if attends else ResidualTDF),
        "tfc_rnn": RecurrentTDF,
        "tdc_rnn": RecurrentTDF,
    }
    builder = builders.get(config.block)
    return Unchanged() if builder is None else builder(config, bins)
