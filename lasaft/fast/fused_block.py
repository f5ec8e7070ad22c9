"""Fast form of a block: mixing -> modulation -> + frequency transform, for many conditions.

Only modulation and frequency transform depend on the condition, so the mixing is shared by all of
them where its inputs are. For the layout of features see :mod:`lasaft.fast`.
"""

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
    """A mixing without a fast form (TDFMixing), run as it is."""

    def __init__(self, mixing: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.mixing = copy.deepcopy(mixing).eval().to(dtype)

    def begin(self, skip: Tensor) -> SkipState:
        """Return ``skip`` [batch, channel, bin, frame]: nothing can be done beforehand."""
        return skip

    def forward(self, x: Tensor, skip: Tensor | None, name: str, buffers: Buffers) -> Tensor:
        """Mix the inputs [batch, _, bin, frame] into [batch, channel, bin, frame]."""
        inputs = (x.mT,) if skip is None else (x.mT, skip.mT)
        return channels_last(self.mixing(*inputs).mT)


class FusedBlock(nn.Module):
    """The fast form of a block for a list of conditions.

    Args:
        block: the plain form.
        condition: of all conditions: vector [condition, size], gammas and betas.
        dtype: of weights and features.
        number: which block it is: names the buffer of its result.
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
        """Return what a skip that all conditions share adds to the mixing."""
        assert isinstance(skip, Tensor)
        return self.mixing.begin(skip)

    def mix(self, x: Tensor, skip: SkipState | None, buffers: Buffers) -> Tensor:
        """Mix the inputs into [batch, channel, bin, frame]; this depends on no condition."""
        return self.mixing(x, skip, self.name, buffers)

    def finish(
        self, mixed: Tensor, conditions: Sequence[int], buffers: Buffers
    ) -> Iterator[Tensor]:
        """Yield the block's features [batch, channel, bin, frame] for each condition in turn.

        Args:
            mixed: result of :meth:`mix`; overwritten if there is one condition.
            conditions: indices into the list of conditions.
            buffers: hold the features yielded, which the next condition's may overwrite.
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
