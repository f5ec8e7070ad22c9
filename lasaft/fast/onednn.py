"""What the fast form asks of a CPU: operations that oneDNN does in one call, types, memory.

torch has no public function for these operations. Where torch or the machine does not have them,
the same is done in steps.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

import torch
from torch import Tensor
from torch.nn import functional

_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, total: Tensor | None = None) -> Tensor:
    """Convolve over bins and frames, as many as before, and sum over places.

    Args:
        x: [batch, inner, place, bin, frame], channels innermost in memory.
        weight: [outer, inner, place, bin, frame], odd in the last two.
        bias: [outer], if any.
        total: [batch, outer, bin, frame], channels-last: the result is added to it, in place.
    """
    padding = [weight.shape[3] // 2, weight.shape[4] // 2]
    if not _can(x):
        y = functional.conv2d(x.flatten(1, 2), weight.flatten(1, 2), bias, padding=padding)
        return y if total is None else total.add_(y)
    options = [0, *padding], [1, 1, 1], [1, 1, 1], 1
    # One item at a time: the places of several do not lie in one block of memory.
    if total is None:
        run = torch.ops.mkldnn._convolution_pointwise
        items = [run(item, weight, bias, *options, "none", [], "") for item in x.split(1)]
        return (items[0] if len(items) == 1 else torch.cat(items)).squeeze(2)
    add = torch.ops.mkldnn._convolution_pointwise_.binary
    for item, into in zip(x.split(1), total.unsqueeze(2).split(1), strict=True):
        add(into, item, weight, bias, *options, "add", 1.0, None, [], None)
    return total


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
    known = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(known, "_convolution_pointwise_"):
        return ()
    return (torch.float32, torch.bfloat16)[: 1 + known._is_mkldnn_bf16_supported()]


def emulates_bfloat16() -> bool:
    """Whether this CPU, or what oneDNN may use of it, makes bfloat16 slower than float32."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    limited = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BFLOAT16
    return platform.machine() in ("x86_64", "AMD64") and (limited or not known())


@functools.cache
def keep_memory() -> None:
    """Have the C library keep large blocks that are freed, for the next tensors of this process.

    Otherwise the system clears every page of the next one: up to a third of a network's time.
    Other C libraries than glibc stay as they are.
    """
    set_option = getattr(ctypes.pythonapi, "mallopt", None)
    if set_option is not None:
        set_option(_M_TRIM_THRESHOLD, 2**31 - 1)
        if not set_option(_M_MMAP_THRESHOLD, 2**30):
            set_option(_M_MMAP_THRESHOLD, 2**25)  # the most that glibc before 2.35 takes
