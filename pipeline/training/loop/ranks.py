"""What the processes of one training say to each other: means, lists, and one common decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class Ranks:
    """This process among all of them; with ``world`` 1 nothing is communicated."""

    rank: int  # number of this process, from 0
    world: int  # how many processes train together
    device: torch.device  # where this process computes

    @classmethod
    def current(cls, device: torch.device) -> Ranks:
        """Return this process's place in torch's process group, alone if there is none."""
        if not distributed.is_initialized():
            return cls(0, 1, device)
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of ``values`` over all processes, in float64 [any shape]."""
        total = values.detach().double()
        if self.world > 1:
            total = total.clone()
            distributed.all_reduce(total)
            total /= self.world
        return total

    def gather(self, value: Any) -> list[Any]:
        """Return every process's ``value``, in the order of the ranks, to all of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def agree(self, value: Any) -> Any:
        """Return the first process's ``value`` to all of them: a decision is taken once."""
        if self.world == 1:
            return value
        values = [value if self.is_first else None]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers (BatchNorm's running statistics)."""
        if self.world > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, src=0)
