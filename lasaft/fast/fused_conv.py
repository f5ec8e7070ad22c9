"""Inference forms of convolutions: BatchNorm folded in, features in the order that suits a CPU.

Features are [batch, channel, bin, frame], channels-last: [batch, bin, frame, channel] in memory.
So a transform over all bins of a frame is one matrix product, and sums over neighbouring bins run
over whole rows of memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from lasaft.fast.buffers import Buffers
from lasaft.network.blocks import ConvNorm


class FusedConv(nn.Module):
    """A convolution with its BatchNorm folded in, then an activation."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        conv: nn.Conv2d,
        act: nn.Module,
        dtype: torch.dtype,
        norm: _BatchNorm | None = None,
    ) -> None:
        super().__init__()
        weight, bias = fold_norm(conv, norm)
        self.register_buffer("weight", channels_last(weight.to(dtype)))
        self.register_buffer("bias", bias.to(dtype))
        self.activation = act
        assert not isinstance(conv.padding, str)
        self.stride, self.padding = conv.stride[::-1], conv.padding[::-1]

    @staticmethod
    def fold(module: nn.Module, dtype: torch.dtype) -> FusedConv | FusedUpsampling:
        """Return the fused form of a convolution with BatchNorm and activation."""
        assert isinstance(module, ConvNorm)
        if isinstance(module.conv, nn.ConvTranspose2d):
            return FusedUpsampling(module.conv, module.activation, dtype, module.norm)
        return FusedConv(module.conv, module.activation, dtype, module.norm)

    def forward(self, x: Tensor, buffers: Buffers) -> Tensor:
        """Return the features; called as :class:`FusedUpsampling` is, needs no ``buffers``."""
        y = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return activate_(y, self.activation)


class FusedUpsampling(nn.Module):
    """A transposed convolution whose windows do not overlap: a product for each bin of a window.

    Several times as fast as the transposed convolution on a CPU.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        conv: nn.ConvTranspose2d,
        act: nn.Module,
        dtype: torch.dtype,
        norm: _BatchNorm | None,
    ) -> None:
        super().__init__()
        assert conv.stride == conv.kernel_size
        weight, bias = fold_norm(conv, norm)
        self.bins, self.frames = weight.shape[2:]
        # [bin of a window, inner, frame of a window x outer]
        windows = weight.permute(2, 0, 3, 1).flatten(2)
        self.register_buffer("weight", windows.contiguous().to(dtype))
        self.register_buffer("bias", bias.repeat(self.frames).to(dtype))
        self.activation = act

    def forward(self, x: Tensor, buffers: Buffers) -> Tensor:
        """Return the features at a higher resolution."""
        batch, _, bins, frames = x.shape
        points = x.permute(0, 2, 3, 1).flatten(0, 2)
        high = buffers.take("up", (batch * bins, self.bins, frames * len(self.bias)), x)
        part = buffers.take("part", (len(points), len(self.bias)), x)
        for number, weight in enumerate(self.weight):
            torch.addmm(self.bias, points, weight, out=part)
            high[:, number] = part.view(batch * bins, -1)
        features = high.view(batch, bins * self.bins, frames * self.frames, -1)
        return activate_(features.permute(0, 3, 1, 2), self.activation)


def fold_norm(
    conv: nn.Conv2d | nn.ConvTranspose2d, norm: _BatchNorm | None
) -> tuple[Tensor, Tensor]:
    """Return the convolution with its BatchNorm in it, in float64.

    Returns:
        weight [outer, inner, bin, frame] (transposed convolutions: inner, outer) and bias [outer].
    """
    weight = conv.weight.detach().double().mT
    bias = torch.zeros(conv.out_channels, dtype=torch.float64, device=weight.device)
    if conv.bias is not None:
        bias = conv.bias.detach().double()
    if norm is None:
        return weight, bias
    scale, shift = norm_as_affine(norm)
    outputs = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    return weight * scale.view(outputs), bias * scale + shift


def norm_as_affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return float64 scale and shift [channel] of a BatchNorm in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift + norm.bias.detach().double() if norm.affine else shift


def activate_(x: Tensor, act: nn.Module) -> Tensor:
    """Apply an activation in place."""
    return x.relu_() if isinstance(act, nn.ReLU) else x.copy_(act(x))


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` with its channels innermost."""
    return x.contiguous(memory_format=torch.channels_last)
