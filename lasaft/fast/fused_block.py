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
from lasaft.network.conditioning import Condition, FiLM, PoCM

# Points (bins x frames) whose channels are mixed at once: few enough to stay in a core's cache.
_POINTS = 4096


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


class FusedFiLM(nn.Module):
    """FiLM with each condition's numbers at hand."""

    gamma: Tensor
    beta: Tensor

    def __init__(self, film: FiLM, condition: Condition, dtype: torch.dtype) -> None:
        super().__init__()
        assert condition.gamma is not None
        assert condition.beta is not None
        self.register_buffer("gamma", condition.gamma[:, film.slot, :, None, None].to(dtype))
        self.register_buffer("beta", condition.beta[:, film.slot, :, None, None].to(dtype))

    def forward(self, x: Tensor, which: int, out: Tensor) -> None:
        """Scale and shift for one of the conditions."""
        torch.addcmul(self.beta[which], x, self.gamma[which], out=out)


class FusedPoCM(nn.Module):
    """PoCM with each condition's matrix at hand, some points after the other."""

    gamma: Tensor
    beta: Tensor

    def __init__(self, pocm: PoCM, condition: Condition, dtype: torch.dtype) -> None:
        super().__init__()
        gamma, beta = pocm.weights(condition)
        self.gated = pocm.gated
        self.register_buffer("gamma", gamma.mT.contiguous().to(dtype))
        self.register_buffer("beta", beta.to(dtype))

    def forward(self, x: Tensor, which: int, out: Tensor) -> None:
        """Mix the channels for one of the conditions, as a gate or as it is."""
        points, results = (
            features.permute(0, 2, 3, 1).flatten(0, 2).split(_POINTS) for features in (x, out)
        )
        for point, result in zip(points, results, strict=True):
            mix = torch.addmm(self.beta[which], point, self.gamma[which])
            if self.gated:
                torch.mul(point, mix.sigmoid_(), out=result)
            else:
                result.copy_(mix)


class FusedBlock(nn.Module):
    """The inference form of a block for a list of conditions.

    Args:
        number: which block it is: the places of its results are called after it.
    """

    def __init__(self, block: Block, condition: Condition, dtype: torch.dtype, number: int) -> None:
        super().__init__()
        dense = isinstance(block.mixing, DenseConvolutions)
        self.mixing = (DenseMixing if dense else PlainMixing)(block.mixing, dtype)  # type: ignore[arg-type]
        self.modulation: FusedFiLM | FusedPoCM | None = None
        if isinstance(block.modulation, FiLM):
            self.modulation = FusedFiLM(block.modulation, condition, dtype)
        elif isinstance(block.modulation, PoCM):
            self.modulation = FusedPoCM(block.modulation, condition, dtype)
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
