"""Attention to latent sources frame by frame: queries and keys may listen to the mixture."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lasaft.config import ModelConfig
from lasaft.network.generator import BlockGenerator


class ConditionQuery(nn.Module):
    """A query of the condition alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.condition_size, config.dk)

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], vector: Float[Tensor, "batch size"]
    ) -> Float[Tensor, "batch 1 key"]:
        """Return the same query for every frame."""
        return self.linear(vector)[:, None]


class MixtureQuery(nn.Module):
    """A query of each frame: the condition says how its channels are mixed to one."""

    def __init__(self, config: ModelConfig, bins: int) -> None:
        super().__init__()
        self.generator = BlockGenerator(config.condition_size, (config.internal_channels, 1))
        self.norm = nn.LayerNorm(bins)
        self.linear = nn.Linear(bins, config.dk)

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], vector: Float[Tensor, "batch size"]
    ) -> Float[Tensor, "batch frame key"]:
        """Return a query for each frame."""
        gamma, beta = self.generator(vector)
        mix = torch.einsum("bctf,bc->btf", x, gamma) + beta[..., None]
        return self.linear(self.norm(mix).relu())


class FixedKeys(nn.Module):
    """One key for each latent source."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.dk, config.num_tdfs))

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"]
    ) -> Float[Tensor, "1 1 key latent"]:
        """Return the same keys for every frame."""
        return self.weight[None, None]


class MixtureKeys(nn.Module):
    """Keys of each frame, from a mix of its channels for each latent source."""

    def __init__(self, config: ModelConfig, bins: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(config.internal_channels, config.num_tdfs, 1)
        self.norm = nn.BatchNorm2d(config.num_tdfs)
        light = config.block == "tfc_lightsaft_v2"
        self.activation = nn.ReLU() if light else nn.Identity()
        self.linear = nn.Linear(bins, config.dk)

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"]
    ) -> Float[Tensor, "batch frame key latent"]:
        """Return the keys of each frame."""
        keys = self.linear(self.activation(self.norm(self.conv(x))))
        return keys.permute(0, 2, 3, 1)


class ListeningAttention(nn.Module):
    """How much each latent source matters to a condition in a frame.

    Source: the authors' LASAFT-Net v2.
    """

    def __init__(self, config: ModelConfig, bins: int) -> None:
        super().__init__()
        listens = config.query_listen
        self.query = MixtureQuery(config, bins) if listens else ConditionQuery(config)
        self.keys = MixtureKeys(config, bins) if config.key_listen else FixedKeys(config)
        self.scale = 1 / math.sqrt(config.dk)

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], vector: Float[Tensor, "batch size"]
    ) -> Float[Tensor, "batch _ latent"]:
        """Return weights that sum to 1."""
        scores = self.query(x, vector).unsqueeze(-2) @ self.keys(x)
        return (scores.squeeze(-2) * self.scale).softmax(dim=-1)
