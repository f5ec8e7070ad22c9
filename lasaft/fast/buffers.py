"""Memory for a network's intermediate results that is used again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Buffers:
    """Named places for tensors of any shape.

    The C library gives large freed blocks back to the system, which clears every page of the next
    one: that is up to a third of a network's time on a CPU. (On a GPU, torch itself keeps them.)
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a tensor with undefined values, good until the next call with this name.

        Args:
            name: of the place.
            shape: of the tensor.
            like: has the type and device.
        """
        size = math.prod(shape)
        if like.device.type != "cpu":
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        held = self._held.get(name)
        if held is None or held.dtype != like.dtype or len(held) < size:
            held = self._held[name] = torch.empty(size, dtype=like.dtype)
        return held[:size].view(*shape)

    def features(self, name: str, like: Tensor, channels: int | None = None) -> Tensor:
        """Return channels-last features [batch, channel, bin, frame] of the size of ``like``."""
        batch, inner, bins, frames = like.shape
        return self.take(name, (batch, bins, frames, channels or inner), like).permute(0, 3, 1, 2)
