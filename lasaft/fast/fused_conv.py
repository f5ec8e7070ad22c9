"""Fast form of ConvNorm: a convolution whose weights contain the BatchNorm after it.

norm(conv(x)) = scale * (W * x + b) + shift = (scale W) * x + (scale b + shift), for each output
channel. For the layout of features see :mod:`lasaft.fast`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from lasaft.fast.buffers import Buffers
from lasaft.network.blocks import ConvNorm


class FusedConv(nn.Module):
    """activation(norm(conv(x))) as one convolution and an activation in place.

    Args:
        conv: of the plain network, over frames and bins.
        act: the activation.
        dtype: of weights and features.
        norm: the BatchNorm after ``conv``, if any.

    Attributes:
        weight: [outer, inner, bin, frame], channels-last.
        bias: [outer].
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, conv: nn.Conv2d, act: nn.Module, dtype: torch.dtype, norm: _BatchNorm | None = None
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
        """Return the fast form of a ConvNorm."""
        assert isinstance(module, ConvNorm)
        if isinstance(module.conv, nn.ConvTranspose2d):
            return FusedUpsampling(module.conv, module.activation, dtype, module.norm)
        return FusedConv(module.conv, module.activation, dtype, module.norm)

    def forward(self, x: Tensor, buffers: Buffers) -> Tensor:
        """Map [batch, inner, bin, frame] to [batch, outer, bins, frames]; needs no ``buffers``."""
        y = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return activate_(y, self.activation)


class FusedUpsampling(nn.Module):
    """activation(norm(conv(x))) of a transposed convolution with stride = kernel size.

    Then windows do not overlap: each input point makes a window of ``self.bins`` x ``self.frames``
    output points alone, by one matrix product over channels. Done for one bin of the window at a
    time, for all points at once: several times as fast on a CPU as the transposed convolution.

    Attributes:
        weight: [bin of the window, inner, frame of the window x outer].
        bias: [frame of the window x outer]: the bias of [outer], repeated.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, conv: nn.ConvTranspose2d, act: nn.Module, dtype: torch.dtype, norm: _BatchNorm | None
    ) -> None:
        super().__init__()
        assert conv.stride == conv.kernel_size
        weight, bias = fold_norm(conv, norm)
        self.bins, self.frames = weight.shape[2:]
        windows = weight.permute(2, 0, 3, 1).flatten(2)
        self.register_buffer("weight", windows.contiguous().to(dtype))
        self.register_buffer("bias", bias.repeat(self.frames).to(dtype))
        self.activation = act

    def forward(self, x: Tensor, buffers: Buffers) -> Tensor:
        """Map [batch, inner, bin, frame] to [batch, outer, bin x bins, frame x frames]."""
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
    """Return weight and bias, in float64, of one convolution that equals norm(conv(x)).

    Args:
        conv: its kernels are [outer, inner, frame, bin] (transposed: [inner, outer, ...]).
        norm: after it, in eval mode; None: the convolution's own weights.

    Returns:
        weight [outer, inner, bin, frame] (transposed convolutions: [inner, outer, ...]) and
        bias [outer].
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
    """Return scale and shift [channel], float64: eval-mode BatchNorm is scale * x + shift."""
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
    """Return ``x`` [batch, channel, bin, frame] as [batch, bin, frame, channel] in memory."""
    return x.contiguous(memory_format=torch.channels_last)
