"""Convolving four rows at a time gives what convolving them one by one gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lasaft.fast.winograd import (
    COMPONENTS,
    TILE,
    from_tiles,
    into_tiles,
    tiled_kernels,
    tiled_offsets,
)


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve features [batch, channel, row, column] tile by tile."""
    batch, channels, rows, columns = x.shape
    outer = len(weight)
    points = x.permute(0, 2, 3, 1)
    components = x.new_empty(COMPONENTS, batch, rows // TILE, columns, channels)
    room = torch.empty_like(components[:2]).flatten(3)
    into_tiles(points.flatten(2), components.flatten(3), room)
    kernels = tiled_kernels(weight.double())
    products = [
        functional.conv2d(part.permute(0, 3, 1, 2), kernel.to(x.dtype), offset, padding=(0, 1))
        for part, kernel, offset in zip(components, kernels, tiled_offsets(bias), strict=True)
    ]
    result = torch.stack(products).permute(0, 1, 3, 4, 2).flatten(1, 2).contiguous()
    out = x.new_empty(batch, rows, columns, outer)
    room = torch.empty_like(result[:2]).flatten(2)
    from_tiles(result.flatten(2), out.view(-1, TILE, columns * outer), room)
    return out.permute(0, 3, 1, 2)


@pytest.mark.parametrize("rows", [4, 20])
def test_convolution_of_tiles_equals_the_direct_one(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, rows, 7, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 5, 3, 3, dtype=torch.float64, generator=generator)
    bias = torch.randn(3, dtype=torch.float64, generator=generator)
    expected = functional.conv2d(x, weight, bias, padding=1)
    # In float64, so that only a wrong constant could show.
    assert (convolve(x, weight, bias) - expected).abs().max() < 1e-12


def test_tiles_are_about_as_exact_as_the_direct_convolution() -> None:
    x = torch.randn(1, 24, 64, 32, generator=torch.Generator().manual_seed(0)).relu()
    weight = 0.1 * torch.randn(8, 24, 3, 3, generator=torch.Generator().manual_seed(1))
    exact = functional.conv2d(x.double(), weight.double(), padding=1)
    assert (convolve(x, weight, torch.zeros(8)) - exact).abs().max() < 1e-6 * exact.abs().max()
