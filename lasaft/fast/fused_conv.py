"""Fast form of ConvNorm: a convolution whose weights contain the BatchNorm after it.

norm(conv(x)) = scale * (W * x + b) + shift = (scale W) * x + (scale b + shift), for each output
channel. For the layout of features see :mod:`lasaft.fast`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class FusedConv(nn.Module):
    """activation(norm(conv(x))) as one convolution and an activation in place."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        conv: nn.Conv2d | nn.ConvTranspose2d,
        norm: nn.Module | None,
        act: nn.Module,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        weight, bias = fold_norm(conv, norm)
        self.register_buffer("weight", channels_last(weight.to(dtype)))
        self.register_buffer("bias", bias.to(dtype))
        transposed = isinstance(conv, nn.ConvTranspose2d)
        self.run = functional.conv_transpose2d if transposed else functional.conv2d
        assert not isinstance(conv.padding, str)
        self.stride, self.padding = conv.stride[::-1], conv.padding[::-1]
        self.activation = act

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inner, bin, frame] to [batch, outer, bins, frames]."""
        y = self.run(x, self.weight, self.bias, self.stride, self.padding)
        return activate(y, self.activation, y)


def fold_norm(
    conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.Module | None
) -> tuple[Tensor, Tensor]:
    """Return weight and bias [outer], in float64, of one convolution that equals norm(conv(x)).

    Kernels are [outer, inner, frame, bin] in ``conv``, [outer, inner, bin, frame] in the result
    (of transposed convolutions: inner first). Without ``norm`` they are the convolution's own.
    """
    weight = conv.weight.detach().double().mT
    bias = weight.new_zeros(conv.out_channels)
    if conv.bias is not None:
        bias = conv.bias.detach().double()
    if norm is None:
        return weight, bias
    scale, shift = norm_as_affine(norm)
    outputs = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    return weight * scale.view(outputs), bias * scale + shift


def foldable(module: nn.Module) -> bool:
    """Return whether weights can contain every normalisation inside ``module``: BatchNorms."""
    return not any(isinstance(part, nn.GroupNorm) for part in module.modules())


def norm_as_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift [channel], float64: eval-mode BatchNorm is scale * x + shift."""
    assert isinstance(norm, _BatchNorm), f"{type(norm).__name__} depends on its input"
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift + norm.bias.detach().double() if norm.affine else shift


def activate(x: Tensor, act: nn.Module, out: Tensor) -> Tensor:
    """Write the activation of ``x`` into ``out``, which may be ``x``, and return it."""
    return torch.clamp_min(x, 0, out=out) if isinstance(act, nn.ReLU) else out.copy_(act(x))


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` [batch, channel, bin, frame] as [batch, bin, frame, channel] in memory."""
    return x.contiguous(memory_format=torch.channels_last)
