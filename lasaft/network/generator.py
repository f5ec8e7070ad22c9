"""Generated numbers from a control vector, by two layers for each block."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class BlockGenerator(nn.Module):
    """The numbers of one block: two linear layers, whose rows have a length of their own.

    Args:
        inputs: size of the control vector.
        counts: how many numbers of each kind there are.

    Source: the authors' LASAFT-Net v2.
    """

    def __init__(self, inputs: int, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = list(counts)
        self.hidden = weight_norm(nn.Linear(inputs, inputs))
        self.output = weight_norm(nn.Linear(inputs, sum(counts)))

    def forward(self, vector: Float[Tensor, "batch size"]) -> tuple[Float[Tensor, "batch _"], ...]:
        """Return the numbers [batch, count] of each kind."""
        return self.output(self.hidden(vector).relu()).split(self.counts, dim=-1)
