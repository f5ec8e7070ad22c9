"""Two operations that oneDNN does in one call on a CPU, without a public function of torch.

Where torch or the machine does not have them, they are done in steps.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional


def add_convolution_(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Add the convolution of ``x`` to ``total``, which keeps the rows and columns of ``x``.

    Args:
        total: [batch, outer, row, column], channels-last.
        x: [batch, inner, row, column], channels-last.
        weight: [outer, inner, row, column], odd in both.
        bias: [outer], if any.
    """
    padding = [weight.shape[2] // 2, weight.shape[3] // 2]
    if _can(x):
        torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, weight, bias, padding, [1, 1], [1, 1], 1, "add", 1.0, None, [], None
        )
    else:
        total.add_(functional.conv2d(x, weight, bias, padding=padding))


def relu_of_product(left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
    """Return relu(left @ right + bias): [row, inner], [inner, column], [column]."""
    if _can(left):
        return torch.ops.mkldnn._linear_pointwise(left, right.T, bias, "relu", [], "")
    return torch.addmm(bias, left, right).relu_()


def _can(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.backends.mkldnn.enabled and x.dtype in _types()


@functools.cache
def _types() -> tuple[torch.dtype, ...]:
    """The types that these operators know on this machine, with this torch."""
    operators = torch.ops.mkldnn
    names = ("_convolution_pointwise_", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(operators, n) for n in names):
        return ()
    if operators._is_mkldnn_bf16_supported():
        return torch.float32, torch.bfloat16
    return (torch.float32,)
