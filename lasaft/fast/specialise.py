"""A trained network made fast for fixed conditions: the same output from its fast form."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lasaft.fast.fused_conv import FusedConv, channels_last, foldable
from lasaft.fast.fused_dense import FusedDense, SkipState
from lasaft.fast.fused_frequency import build_fused_frequency
from lasaft.fast.onednn import emulates_bfloat16, keep_memory
from lasaft.network.blocks import Block, ConvNorm, DenseConvolutions
from lasaft.network.model import LaSAFT
from lasaft.network.modulations import Condition, FastModulation, Modulation


def specialise(
    model: LaSAFT, conditions: Sequence[int] | Tensor, dtype: torch.dtype = torch.float32
) -> Specialised:
    """Return the fast form of ``model`` for these conditions (see :mod:`lasaft.fast`).

    Everything before the first block that listens to the condition is computed once for all
    conditions. The weights are copied: later changes to ``model`` do not reach the result.

    Args:
        conditions: indices into ``model.config.sources``, or rows of them (``LaSAFT.estimate``).
        dtype: of weights and activations: float32 (within 2e-5 of the plain network's scale) or
            bfloat16 (about 37 dB below it; float32 on a CPU that would only emulate it).

    Returns:
        a module: mixture [batch, plane, frame, bin] -> estimates [batch, condition, plane,
        frame, bin], complex planes as channels.
    """
    if model.network.last.weight.device.type == "cpu":
        keep_memory()
        if dtype == torch.bfloat16 and emulates_bfloat16():
            dtype = torch.float32
    return Specialised(model, torch.as_tensor(conditions), dtype)


class Specialised(nn.Module):
    """See :func:`specialise`."""

    @torch.no_grad()
    def __init__(self, model: LaSAFT, conditions: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.conditions = len(conditions)
        # In a tuple, so that the network is not registered (and copied) as a part of this one.
        self._model = (model,)
        network, config = model.network, model.config
        training = model.training
        device = network.last.weight.device
        condition = network.conditioner.eval()(conditions.to(device))
        network.conditioner.train(training)
        self.levels = config.levels
        self.blocks = nn.ModuleList()
        for block in (*network.encoders, network.middle, *network.decoders):
            assert isinstance(block, Block)
            self.blocks.append(FusedBlock(block, condition, dtype))
        self.first = _fused(network.first, torch.float32)  # bfloat16 costs 0.5 dB here
        self.downs = nn.ModuleList(_fused(down, dtype) for down in network.downs)
        self.ups = nn.ModuleList(_fused(up, dtype) for up in network.ups)
        self.last = FusedConv(network.last, None, network.activation, dtype)
        flags = zip(config.attentive_blocks, config.modulated_blocks, strict=True)
        listens = [any(each) for each in flags]
        self.shared_blocks = listens.index(True) if any(listens) else len(self.blocks)

    @torch.no_grad()
    def forward(
        self, mixture_spec: Float[Tensor, "batch plane frame bin"]
    ) -> Float[Tensor, "batch condition plane frame bin"]:
        """Estimate all conditions' sources, complex planes as channels."""
        (model,) = self._model
        model.network.check_frames(mixture_spec.shape[2])
        with torch.autocast(mixture_spec.device.type, enabled=False):
            seen = model.network_input(mixture_spec.float())
            estimates = [
                model.to_spectrogram(model.to_estimate(output.mT.float(), seen), mixture_spec)
                for output in self._outputs(seen.mT)
            ]
        return torch.stack(estimates, dim=1)

    def _outputs(self, seen: Tensor) -> Iterator[Tensor]:
        """Yield the network's output [batch, channel, bin, frame] for each condition.

        What is shared is run once, the rest for one condition after the other, because its
        features then stay in the CPU's cache.
        """
        split, count = self.shared_blocks, self.conditions
        skips: list[SkipState] = []
        x = self.first(channels_last(seen)).to(self.dtype)
        x = self._run(range(split), 0, x, skips)
        if split == len(self.blocks):
            yield from [self.last(x)] * count
            return
        mixed = self._mix(split, x, skips)
        # What shared skips add to the decoders is shared as well.
        begun: list[SkipState] = []
        for level, skip in enumerate(skips):
            assert isinstance(skip, Tensor)
            begun.append(self._block(2 * self.levels - level).mixing.begin(skip))
        rest = range(split + 1, len(self.blocks))
        for which, head in enumerate(self._block(split).finish(mixed, range(count))):
            own = [*begun, head] if split < self.levels else list(begun)
            yield self.last(self._run(rest, which, head, own))

    def _run(self, numbers: Iterable[int], which: int, x: Tensor, skips: list[SkipState]) -> Tensor:
        """Run blocks for one condition; encoders add to the skips, decoders take from them."""
        for number in numbers:
            (x,) = self._block(number).finish(self._mix(number, x, skips), [which])
            if number < self.levels:
                skips.append(x)
        return x

    def _mix(self, number: int, x: Tensor, skips: list[SkipState]) -> Tensor:
        """Bring the last block's features to this block's resolution, and mix them."""
        mixing = self._block(number).mixing
        if number > self.levels:
            return mixing(self.ups[number - self.levels - 1](x), skips.pop())
        return mixing(self.downs[number - 1](x) if number else x, None)

    def _block(self, number: int) -> FusedBlock:
        block = self.blocks[number]
        assert isinstance(block, FusedBlock)
        return block


class Plain(nn.Module):
    """A mixing or a convolution without a fast form, run as it is, for the inputs of FusedDense."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).eval().to(dtype)

    def begin(self, skip: Tensor) -> SkipState:
        """Return ``skip``."""
        return skip

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return [batch, channel, bin, frame] of the inputs."""
        inputs = (x.mT,) if skip is None else (x.mT, skip.mT)
        return channels_last(self.module(*inputs).mT)


class FusedBlock(nn.Module):
    """A block, mixing -> modulation -> + frequency transform, for a list of conditions.

    Only modulation and frequency transform depend on the condition, so the mixing is shared by all
    of them where its inputs are. ``condition`` has vectors, gammas and betas of all.
    """

    def __init__(self, block: Block, condition: Condition, dtype: torch.dtype) -> None:
        super().__init__()
        dense = isinstance(block.mixing, DenseConvolutions) and foldable(block.mixing)
        self.mixing = (FusedDense if dense else Plain)(block.mixing, dtype)  # type: ignore[arg-type]
        self.modulation: FastModulation | None = None
        if isinstance(block.modulation, Modulation):
            form = block.modulation.fast_form
            self.modulation = form(block.modulation, condition, dtype)
        self.frequency = build_fused_frequency(block.frequency, condition, dtype)

    def finish(self, mixed: Tensor, conditions: Sequence[int]) -> Iterator[Tensor]:
        """Yield the block's features [batch, channel, bin, frame] for each condition in turn.

        Args:
            mixed: result of the mixing; overwritten if there is one condition.
            conditions: indices into the list of conditions.
        """
        alike = [conditions] if self.modulation is None else [[which] for which in conditions]
        for group in alike:
            x = mixed
            if self.modulation is not None:
                x = mixed if len(conditions) == 1 else torch.empty_like(mixed)
                self.modulation(mixed, group[0], x)
            yield from [x] * len(group) if self.frequency is None else self.frequency(x, group)


def _fused(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    assert isinstance(module, ConvNorm)
    if not foldable(module):
        return Plain(module, dtype)
    return FusedConv(module.conv, module.norm, module.activation, dtype)
