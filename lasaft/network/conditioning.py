"""From a source number to numbers that steer the blocks: FiLM, PoCM and gated PoCM."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lasaft.config import ModelConfig
from lasaft.errors import ConfigError
from lasaft.network.activations import activation


class Condition(NamedTuple):
    """What the blocks get to know of the wanted source; a part nobody uses is None.

    Attributes:
        vector: the control vector [batch, size], which attention reads.
        gamma: multipliers [batch, modulated block, number] in the order encoder, middle, decoder.
        beta: offsets [batch, modulated block, number] in the same order.
    """

    vector: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None


class OneHot(nn.Module):
    """A source number as a vector with a single one."""

    identity: Tensor

    def __init__(self, sources: int) -> None:
        super().__init__()
        self.register_buffer("identity", torch.eye(sources), persistent=False)

    def forward(self, source: Int[Tensor, " batch"]) -> Float[Tensor, "batch source"]:
        """Return a row of the identity for each item."""
        return self.identity[source]


class ControlLayer(nn.Module):
    """One layer of the control network; from the second on it is dropped out and normalised."""

    def __init__(self, inputs: int, *, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * inputs)
        self.norm = None if first else nn.BatchNorm1d(2 * inputs)
        self.dropout = None if first else nn.Dropout(0.5)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """Double the number of features."""
        x = self.linear(x).relu()
        return x if self.norm is None or self.dropout is None else self.norm(self.dropout(x))


class Head(nn.Module):
    """Generates one kind of modulation number for all modulated blocks."""

    def __init__(self, inputs: int, blocks: int, numbers: int, config: ModelConfig, act: str):
        super().__init__()
        self.shape = (blocks, numbers)
        self.linear = nn.Linear(inputs, blocks * numbers)
        normed = config.modulation != "film" and config.pocm_norm == "batch_norm"
        self.norm = nn.BatchNorm1d(blocks * numbers, affine=False) if normed else nn.Identity()
        self.activation = activation(act if config.modulation == "film" else "identity")

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch block number"]:
        """Return the numbers of each block."""
        return self.norm(self.activation(self.linear(x))).unflatten(-1, self.shape)


class Conditioner(nn.Module):
    """Control vector -> control network -> the modulation of every block.

    Only what the config uses exists, so that no parameter is left without a gradient.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        blocks = sum(config.modulated_blocks)
        size = config.condition_size
        self.embedding = self.control = self.gamma = self.beta = None
        if blocks or config.attentive:
            one_hot = config.control_vector_type == "one_hot_mode"
            sources = len(config.sources)
            self.embedding = OneHot(sources) if one_hot else nn.Embedding(sources, size)
        if blocks:
            layers = range(config.control_n_layer - 1)
            self.control = nn.Sequential(
                *(ControlLayer(size << layer, first=layer == 0) for layer in layers)
            )
            width = size << len(layers)
            gammas, betas = _numbers(config)
            self.gamma = Head(width, blocks, gammas, config, config.gamma_activation)
            self.beta = Head(width, blocks, betas, config, config.beta_activation)

    def forward(self, source: Int[Tensor, " batch"]) -> Condition:
        """Return the condition of each item.

        Raises:
            ConfigError: training with one item, whose batch statistics do not exist.
        """
        if self.embedding is None:
            return Condition(None, None, None)
        vector = self.embedding(source)
        if self.control is None or self.gamma is None or self.beta is None:
            return Condition(vector, None, None)
        if self.training and len(source) == 1 and self._needs_batch():
            raise ConfigError(
                "batch_size: got 1 item a process, allowed: 2 or more, because the control "
                "network normalises over the batch (control_n_layer 3 or more, or pocm_norm)"
            )
        control = self.control(vector)
        return Condition(vector, self.gamma(control), self.beta(control))

    def _needs_batch(self) -> bool:
        return any(isinstance(module, nn.BatchNorm1d) for module in self.modules())


def _numbers(config: ModelConfig) -> tuple[int, int]:
    """How many gammas and betas a block needs."""
    channels = config.internal_channels
    if config.modulation == "film":
        return (1, 1) if config.film_type == "simple" else (channels, channels)
    return channels * channels, channels


class Unmodulated(nn.Module):
    """Leaves a block's features alone."""

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return ``x``."""
        return x


class FiLM(nn.Module):
    """Scales and shifts each channel, or (film_type simple) all channels alike.

    Args:
        slot: which of the modulated blocks this is.

    Source: arXiv 2010.11631, section 2.2; Meseguer-Brocal and Peeters, arXiv 1907.01277.
    """

    def __init__(self, slot: int) -> None:
        super().__init__()
        self.slot = slot

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return gamma * x + beta."""
        assert condition.gamma is not None
        assert condition.beta is not None
        gamma = condition.gamma[:, self.slot, :, None, None]
        return gamma * x + condition.beta[:, self.slot, :, None, None]


class PoCM(nn.Module):
    """Mixes the channels point by point with generated weights, as a gate or as it is.

    Args:
        slot: which of the modulated blocks this is.
        gated: return x * sigmoid(mix) instead of the mix (GPoCM).
        transposed: the weights are generated as [in, out] (matmul), not as [out, in] (naive).

    Source: arXiv 2010.11631, sections 2.2 and 2.4.
    """

    def __init__(self, slot: int, *, gated: bool, transposed: bool) -> None:
        super().__init__()
        self.slot = slot
        self.gated = gated
        self.transposed = transposed

    def weights(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return the mixing matrices [batch, out, in] and the offsets [batch, out]."""
        assert condition.gamma is not None
        assert condition.beta is not None
        beta = condition.beta[:, self.slot]
        gamma = condition.gamma[:, self.slot].unflatten(-1, (beta.shape[-1], beta.shape[-1]))
        return (gamma.mT if self.transposed else gamma), beta

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return the mix, or ``x`` gated by it."""
        gamma, beta = self.weights(condition)
        mix = mix_channels(x, gamma, beta)
        return x * mix.sigmoid() if self.gated else mix


def mix_channels(
    x: Float[Tensor, "batch inner frame bin"],
    weight: Float[Tensor, "batch outer inner"],
    offset: Float[Tensor, "batch outer"],
) -> Float[Tensor, "batch outer frame bin"]:
    """Apply each item's own 1x1 convolution as one batched product, in ``x``'s memory layout."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        points = x.permute(0, 2, 3, 1).flatten(1, 2)
        mixed = torch.baddbmm(offset[:, None], points, weight.mT)
        return mixed.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    mixed = torch.baddbmm(offset[:, :, None], weight, x.flatten(2))
    return mixed.unflatten(2, x.shape[2:])


def build_modulation(config: ModelConfig, block: int) -> nn.Module:
    """Return the modulation of the block with this number (encoders, middle, decoders)."""
    if not config.modulated_blocks[block]:
        return Unmodulated()
    slot = sum(config.modulated_blocks[:block])
    if config.modulation == "film":
        return FiLM(slot)
    return PoCM(slot, gated=config.modulation == "gpocm", transposed=config.pocm_type == "matmul")
