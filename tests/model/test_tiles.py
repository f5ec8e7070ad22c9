"""Convolving four frames at a time gives what convolving them one by one gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lasaft.tiles import Direct, Domain, Tiled


@pytest.mark.parametrize("domain", [Direct(), Tiled()])
@pytest.mark.parametrize("frames", [4, 20])
def test_convolution_in_a_domain_equals_the_direct_one(domain: Domain, frames: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, frames, 7, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 5, 3, 5, dtype=torch.float64, generator=generator)
    bias = torch.randn(3, dtype=torch.float64, generator=generator)
    expected = functional.conv2d(x, weight, bias, padding=(1, 2))
    parts = zip(domain.enter(x), domain.kernels(weight), domain.offsets(bias), strict=True)
    products = [
        functional.conv2d(part, kernel, offset, padding=(kernel.shape[2] // 2, 2))
        for part, kernel, offset in parts
    ]
    # In float64, so that only a wrong constant could show.
    assert (domain.leave(products) - expected).abs().max() < 1e-12


def test_tiles_are_about_as_exact_as_the_direct_convolution() -> None:
    x = torch.randn(1, 24, 64, 32, generator=torch.Generator().manual_seed(0)).relu()
    weight = 0.1 * torch.randn(8, 24, 3, 3, generator=torch.Generator().manual_seed(1))
    exact = functional.conv2d(x.double(), weight.double(), padding=1)
    tiled = Tiled()
    kernels = [kernel.float() for kernel in tiled.kernels(weight.double())]
    products = [
        functional.conv2d(part, kernel, padding=(0, 1))
        for part, kernel in zip(tiled.enter(x), kernels, strict=True)
    ]
    assert (tiled.leave(products) - exact).abs().max() < 1e-6 * exact.abs().max()
