"""The normalisation of convolutions and of transforms of frequencies."""

from __future__ import annotations

import math

from torch import nn


def norm_2d(kind: str, channels: int, *, affine: bool = True) -> nn.Module:
    """Build the normalisation of [batch, channel, frame, bin] with this name: bn or gn.

    Groups are as many as the largest divisor of the channels from 3 to about their root, else one.

    Source: the authors' LASAFT-Net v2.
    """
    if kind == "bn":
        return nn.BatchNorm2d(channels, affine=affine)
    divisors = range(math.ceil(math.sqrt(channels)), 2, -1)
    groups = next((number for number in divisors if channels % number == 0), 1)
    return nn.GroupNorm(groups, channels, affine=affine)
