"""Dropout over the batches of all processes: the masks that one process alone would draw."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from pipeline.training.loop.ranks import Ranks


class CommonDropout(nn.Dropout):
    """A Dropout that draws the mask of all processes' windows and applies its own rows.

    The processes' generators must be in the same state, and their batches of one size.
    """

    ranks: Ranks

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop numbers of ``input`` [window, ...]; in eval mode return it as it is."""
        if not self.training:
            return input
        windows = len(input)
        ones = input.new_ones(windows * self.ranks.world, *input.shape[1:])
        mask = functional.dropout(ones, self.p)
        first = self.ranks.rank * windows
        return input * mask[first : first + windows]


def share_dropout(module: nn.Module, ranks: Ranks) -> None:
    """Turn every Dropout inside ``module`` into a :class:`CommonDropout`, in place."""
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.__class__ = CommonDropout
            child.__dict__["ranks"] = ranks
