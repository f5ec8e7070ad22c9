"""Scales and shifts each channel, or with film_type simple all channels alike (FiLM).

Source: arXiv 2010.11631, section 2.2; Meseguer-Brocal and Peeters, arXiv 1907.01277.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lasaft.config import ModelConfig
from lasaft.network.modulations import FastModulation, Modulation

LABEL = "FiLM"
OPTIONS = ("film_type", "gamma_activation", "beta_activation")


class FastFiLM(FastModulation):
    """FiLM as one operation that writes its result in place."""

    def forward(
        self,
        x: Float[Tensor, "batch channel bin frame"],
        which: int,
        out: Float[Tensor, "batch channel bin frame"],
    ) -> None:
        """Write gamma * x + beta into ``out``."""
        gamma, beta = (numbers[which, :, None, None] for numbers in (self.gamma, self.beta))
        torch.addcmul(beta, x, gamma, out=out)


class FiLM(Modulation):
    """gamma * x + beta, with one gamma and beta for each channel or for all."""

    fast_form = FastFiLM

    @staticmethod
    def numbers(config: ModelConfig, bins: int) -> tuple[int, int]:
        """Return one of each for a channel, or in all."""
        count = 1 if config.film_type == "simple" else config.internal_channels
        return count, count

    def modulate(
        self,
        x: Float[Tensor, "batch channel frame bin"],
        gamma: Float[Tensor, "batch numbers"],
        beta: Float[Tensor, "batch numbers"],
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return gamma * x + beta."""
        return gamma[:, :, None, None] * x + beta[:, :, None, None]
