"""Convolutions over three frames with half the multiplications: four frames at a time."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

# Interpolation points 0, ±1/sqrt(2), ±sqrt(2) and infinity: with them the result is about as exact
# as the direct one (with 0, ±1, ±2 its error is twice as large).
_A, _B = math.sqrt(0.5), math.sqrt(2.0)
_POINTS = (0.0, _A, -_A, _B, -_B)
TILE = 4


@runtime_checkable
class Domain(Protocol):
    """A way of convolving over frames and bins: a sum of products of components."""

    def kernels(self, weight: Tensor) -> list[Tensor]:
        """Return the kernel's components [outer, inner, frame, bin]."""
        ...

    def offsets(self, bias: Tensor) -> list[Tensor]:
        """Return the components [outer] of a constant."""
        ...

    def enter(self, x: Tensor) -> list[Tensor]:
        """Return the components of features [batch, channel, frame, bin]."""
        ...

    def leave(self, components: list[Tensor]) -> Tensor:
        """Return the features that the components stand for."""
        ...


class Direct:
    """The features themselves are the one component."""

    def kernels(self, weight: Tensor) -> list[Tensor]:
        """Return the kernel."""
        return [weight]

    def offsets(self, bias: Tensor) -> list[Tensor]:
        """Return the bias."""
        return [bias]

    def enter(self, x: Tensor) -> list[Tensor]:
        """Return the features."""
        return [x]

    def leave(self, components: list[Tensor]) -> Tensor:
        """Return the features."""
        return components[0]


class Tiled:
    """Four frames and their neighbours as six components, convolved over bins alone.

    Source: Winograd's F(4, 3) along the frames; Lavin and Gray, arXiv 1509.09308. The number of
    frames must be a multiple of four.
    """

    def kernels(self, weight: Tensor) -> list[Tensor]:
        """Return six kernels [outer, inner, 1, bin] for one of three frames."""
        rows = []
        for point in _POINTS:
            others = math.prod(point - other for other in _POINTS if other != point)
            powers = torch.tensor([1.0, point, point**2], dtype=weight.dtype, device=weight.device)
            rows.append(torch.einsum("oitf,t->oif", weight, powers / others))
        return [row.unsqueeze(2) for row in (*rows, weight[:, :, 2])]

    def offsets(self, bias: Tensor) -> list[Tensor]:
        """Return six constants that add up to ``bias`` in every frame."""
        back = [[point**frame for point in _POINTS] + [0.0] for frame in range(TILE)]
        back[-1][-1] = 1.0
        one = torch.ones(TILE, 1, dtype=torch.float64)
        shares = torch.linalg.lstsq(torch.tensor(back, dtype=torch.float64), one).solution
        return [bias * float(share) for share in shares]

    def enter(self, x: Tensor) -> list[Tensor]:
        """Return the six components [batch, channel, frame / 4, bin]."""
        first, second, third, fourth = (x[:, :, frame::TILE] for frame in range(TILE))
        # The frame before the four is the tile before's fourth, the one after the next's first.
        before = torch.sub(fourth, second, alpha=2.5)
        before[:, :, 1:].add_(fourth[:, :, :-1])
        after = torch.sub(first, third, alpha=2.5)
        after[:, :, :-1].add_(first[:, :, 1:])
        even_a, odd_a = torch.sub(fourth, second, alpha=2.0), torch.sub(third, first, alpha=2.0)
        even_b, odd_b = torch.sub(fourth, second, alpha=0.5), torch.sub(third, first, alpha=0.5)
        return [
            before,
            torch.add(even_a, odd_a, alpha=_A),
            even_a.sub_(odd_a, alpha=_A),
            torch.add(even_b, odd_b, alpha=_B),
            even_b.sub_(odd_b, alpha=_B),
            after,
        ]

    def leave(self, components: list[Tensor]) -> Tensor:
        """Return the features [batch, channel, frame, bin]."""
        zero, plus_a, minus_a, plus_b, minus_b, infinity = components
        even_a, odd_a = plus_a + minus_a, plus_a - minus_a
        even_b, odd_b = plus_b + minus_b, plus_b - minus_b
        batch, channels, tiles, bins = zero.shape
        shape = (batch, channels, tiles * TILE, bins)
        x = torch.empty(
            shape, dtype=zero.dtype, device=zero.device, memory_format=torch.channels_last
        )
        first, second, third, fourth = (x[:, :, frame::TILE] for frame in range(TILE))
        torch.add(even_a, even_b, out=first).add_(zero)
        torch.add(odd_a.mul_(_A), odd_b, alpha=_B, out=second)
        torch.add(even_a.mul_(0.5), even_b, alpha=2.0, out=third)
        torch.add(odd_a.mul_(0.5), odd_b, alpha=_B**3, out=fourth).add_(infinity)
        return x
