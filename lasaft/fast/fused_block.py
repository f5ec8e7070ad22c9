"""A block's inference form: mixing, modulation and frequency transform with nothing to fold."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lasaft.fast.buffers import Buffers
from lasaft.fast.fused_conv import channels_last
from lasaft.fast.fused_dense import DenseMixing, SkipState
from lasaft.fast.fused_frequency import FusedFrequency, build_fused_frequency
from lasaft.network.blocks import Block, DenseConvolutions
from lasaft.network.modulations import Condition, FastModulation, Modulation


class PlainMixing(nn.Module):
    """Any other mixing, as it is."""

    def __init__(self, mixing: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.mixing = copy.deepcopy(mixing).eval().to(dtype)

    def begin(self, skip: Tensor) -> SkipState:
        """Return the skip."""
        return skip

    def forward(self, x: Tensor, skip: Tensor | None, name: str, buffers: Buffers) -> Tensor:
        """Mix the inputs."""
        inputs = (x.mT,) if skip is None else (x.mT, skip.mT)
        return channels_last(self.mixing(*inputs).mT)


class FusedBlock(nn.Module):
    """The inference form of a block for a list of conditions.

    Args:
        number: which block it is: the places of its results are called after it.
    """

    def __init__(self, block: Block, condition: Condition, dtype: torch.dtype, number: int) -> None:
        super().__init__()
        dense = isinstance(block.mixing, DenseConvolutions)
        self.mixing = (DenseMixing if dense else PlainMixing)(block.mixing, dtype)  # type: ignore[arg-type]
        self.modulation: FastModulation | None = None
        if isinstance(block.modulation, Modulation):
            form = block.modulation.fast_form
            self.modulation = form(block.modulation, condition, dtype)
        self.frequency: FusedFrequency | None = build_fused_frequency(
            block.frequency, condition, dtype
        )
        self.name = f"block{number}"

    def begin(self, skip: SkipState) -> SkipState:
        """Do with a shared skip what can be done without the block's other input."""
        assert isinstance(skip, Tensor)
        return self.mixing.begin(skip)

    def mix(self, x: Tensor, skip: SkipState | None, buffers: Buffers) -> Tensor:
        """Mix the inputs: no condition plays a part in it."""
        return self.mixing(x, skip, self.name, buffers)

    def finish(
        self, mixed: Tensor, conditions: Sequence[int], buffers: Buffers
    ) -> Iterator[Tensor]:
        """Yield the block's features for each condition.

        They are good until the next condition's; a single one's overwrite ``mixed``.
        """
        if self.modulation is None:
            yield from self._transform(mixed, conditions, buffers)
            return
        for which in conditions:
            x = mixed if len(conditions) == 1 else buffers.features("head", mixed)
            self.modulation(mixed, which, x)
            yield from self._transform(x, [which], buffers)

    def _transform(self, x: Tensor, conditions: Sequence[int], buffers: Buffers) -> list[Tensor]:
        if self.frequency is None:
            return [x] * len(conditions)
        results = [x]
        if len(conditions) > 1:
            results = [buffers.features(f"head{which}", x) for which in conditions]
        self.frequency(x, conditions, results)
        return results
