"""Mixes the channels point by point with generated weights (PoCM).

Source: arXiv 2010.11631, section 2.2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lasaft.config import ModelConfig
from lasaft.network.modulations import Condition, FastModulation, Modulation

LABEL = "PoCM"
OPTIONS = ("pocm_type", "pocm_norm")


class FastPoCM(FastModulation):
    """PoCM as one convolution over all points.

    Attributes:
        gamma: mixing matrices [condition, out, in, 1, 1].
        beta: offsets [condition, out].
    """

    def __init__(self, modulation: PoCM, condition: Condition, dtype: torch.dtype) -> None:
        super().__init__(modulation, condition, dtype)
        self.gated = modulation.gated
        self.gamma = modulation.matrices(self.gamma)[..., None, None].contiguous()

    def forward(
        self,
        x: Float[Tensor, "batch channel bin frame"],
        which: int,
        out: Float[Tensor, "batch channel bin frame"],
    ) -> None:
        """Write the mix, or ``x`` gated by it, into ``out``."""
        mix = functional.conv2d(x, self.gamma[which], self.beta[which])
        if self.gated:
            torch.mul(x, mix.sigmoid_(), out=out)
        else:
            out.copy_(mix)


class PoCM(Modulation):
    """A 1x1 convolution with weights and offsets of its own for each item.

    With pocm_type matmul the weights are generated as [in, out], with naive as [out, in].
    """

    fast_form = FastPoCM
    gated = False

    def __init__(self, config: ModelConfig, bins: int, slot: int) -> None:
        super().__init__(config, bins, slot)
        self.transposed = config.pocm_type == "matmul"

    @staticmethod
    def numbers(config: ModelConfig, bins: int) -> tuple[int, int]:
        """Return the sizes of a mixing matrix and of its offsets."""
        return config.internal_channels**2, config.internal_channels

    def matrices(self, gamma: Float[Tensor, "batch gammas"]) -> Float[Tensor, "batch out in"]:
        """Return the generated weights as mixing matrices."""
        size = round(gamma.shape[1] ** 0.5)
        weights = gamma.unflatten(-1, (size, size))
        return weights.mT if self.transposed else weights

    def modulate(
        self,
        x: Float[Tensor, "batch channel frame bin"],
        gamma: Float[Tensor, "batch gammas"],
        beta: Float[Tensor, "batch channel"],
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return the mix of the channels at each point, or with ``gated`` x * sigmoid(mix)."""
        mix = self.mix(x, self.matrices(gamma), beta)
        return x * mix.sigmoid() if self.gated else mix

    @staticmethod
    def mix(
        x: Float[Tensor, "batch in frame bin"],
        weight: Float[Tensor, "batch out in"],
        offset: Float[Tensor, "batch out"],
    ) -> Float[Tensor, "batch out frame bin"]:
        """Return weight @ x + offset at each point: one product, in the memory layout of ``x``."""
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            points = x.permute(0, 2, 3, 1).flatten(1, 2)
            mixed = torch.baddbmm(offset[:, None], points, weight.mT)
            return mixed.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        mixed = torch.baddbmm(offset[:, :, None], weight, x.flatten(2))
        return mixed.unflatten(2, x.shape[2:])
