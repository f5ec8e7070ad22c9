"""Convolutions over three rows with half the multiplications: four rows (a tile) at a time.

d is a tile with the row on each side of it, six rows; g are the kernel's three rows. With fixed
matrices A, B and G the four output rows are A^T ((G g) * (B^T d)), where * is elementwise: six
products for four rows instead of twelve. ``into_tiles`` makes the components B^T d of features,
``tiled_kernels`` G g of kernels, ``from_tiles`` applies A^T. Columns and channels are not touched:
each component is convolved over columns alone. All of this is linear, so results of several inputs
may be added up before the way back.

Source: Winograd's F(4, 3) along the rows; Lavin and Gray, arXiv 1509.09308.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Interpolation points 0, ±1/sqrt(2), ±sqrt(2) and infinity: with them the result is about as exact
# as the direct one (with 0, ±1, ±2 its error is twice as large).
_A, _B = math.sqrt(0.5), math.sqrt(2.0)
_POINTS = (0.0, _A, -_A, _B, -_B)
TILE = 4
COMPONENTS = 6


def tiled_kernels(weight: Tensor) -> list[Tensor]:
    """Return the six components [outer, inner, 1, column] of a kernel [outer, inner, 3, column]."""
    rows = []
    for point in _POINTS:
        others = math.prod(point - other for other in _POINTS if other != point)
        powers = torch.tensor([1.0, point, point**2], dtype=weight.dtype, device=weight.device)
        rows.append(torch.einsum("oirc,r->oic", weight, powers / others))
    return [row.unsqueeze(2) for row in (*rows, weight[:, :, 2])]


def tiled_offsets(bias: Tensor) -> list[Tensor]:
    """Return components of which ``from_tiles`` makes ``bias`` [channel] in every row."""
    back = [[point**row for point in _POINTS] + [0.0] for row in range(TILE)]
    back[-1][-1] = 1.0
    one = torch.ones(TILE, 1, dtype=torch.float64)
    shares = torch.linalg.lstsq(torch.tensor(back, dtype=torch.float64), one).solution
    return [bias * float(share) for share in shares]


def into_tiles(x: Tensor, out: Tensor, room: Tensor) -> None:
    """Write the components of features.

    Args:
        x: [batch, row, number]: numbers are columns and channels; rows a multiple of four.
        out: [component, batch, row / 4, number].
        room: [2, batch, row / 4, number], for intermediate results.
    """
    even, odd = room
    first, second, third, fourth = (x[:, row::TILE] for row in range(TILE))
    before, plus_a, minus_a, plus_b, minus_b, after = out
    # The row before the four is the tile before's fourth, the one after the next's first.
    torch.sub(fourth, second, alpha=2.5, out=before)
    before[:, 1:].add_(fourth[:, :-1])
    torch.sub(first, third, alpha=2.5, out=after)
    after[:, :-1].add_(first[:, 1:])
    for plus, minus, weight, size in ((plus_a, minus_a, 2.0, _A), (plus_b, minus_b, 0.5, _B)):
        torch.sub(fourth, second, alpha=weight, out=even)
        torch.sub(third, first, alpha=weight, out=odd)
        torch.add(even, odd, alpha=size, out=plus)
        torch.sub(even, odd, alpha=size, out=minus)


def from_tiles(components: Tensor, out: Tensor, room: Tensor) -> None:
    """Write the features that components stand for; the components are overwritten.

    Args:
        components: [component, tile, number].
        out: [tile, four rows, number].
        room: [2, tile, number], for intermediate results.
    """
    zero, plus_a, minus_a, plus_b, minus_b, infinity = components
    even_a, even_b = room
    for plus, minus, even in ((plus_a, minus_a, even_a), (plus_b, minus_b, even_b)):
        torch.add(plus, minus, out=even)
        plus.sub_(minus)
    odd_a, odd_b = plus_a, plus_b
    first, second, third, fourth = out.unbind(1)
    torch.add(even_a, even_b, out=first).add_(zero)
    torch.add(odd_a.mul_(_A), odd_b, alpha=_B, out=second)
    torch.add(even_a.mul_(0.5), even_b, alpha=2.0, out=third)
    torch.add(odd_a.mul_(0.5), odd_b, alpha=_B**3, out=fourth).add_(infinity)
