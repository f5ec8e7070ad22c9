"""A trained network made fast for fixed conditions: the same output from its fast form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lasaft.fast.buffers import Buffers
from lasaft.fast.fused_block import FusedBlock
from lasaft.fast.fused_conv import FusedConv, channels_last
from lasaft.fast.fused_dense import SkipState
from lasaft.network.blocks import Block
from lasaft.network.model import LaSAFT


def specialise(
    model: LaSAFT, conditions: Sequence[int] | Tensor, dtype: torch.dtype = torch.float32
) -> Specialised:
    """Return the fast form of ``model`` for these conditions (see :mod:`lasaft.fast`).

    Everything before the first block that listens to the condition is computed once for all
    conditions. The weights are copied: later changes to ``model`` do not reach the result.

    Args:
        conditions: indices into ``model.config.sources``.
        dtype: of weights and activations: float32 (within 2e-5 of the plain network's scale) or
            bfloat16 (about 28 dB below it).

    Returns:
        a module: mixture [batch, plane, frame, bin] -> estimates [batch, condition, plane,
        frame, bin], complex planes as channels.
    """
    numbers = [int(number) for number in conditions]
    return Specialised(model, numbers, dtype)


class Specialised(nn.Module):
    """See :func:`specialise`."""

    @torch.no_grad()
    def __init__(self, model: LaSAFT, conditions: list[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.conditions = tuple(conditions)
        # In a tuple, so that the network is not registered (and copied) as a part of this one.
        self._model = (model,)
        network, config = model.network, model.config
        training = model.training
        device = network.last.weight.device
        condition = network.conditioner.eval()(torch.tensor(conditions, device=device))
        network.conditioner.train(training)
        self.levels = config.levels
        plain = [*network.encoders, network.middle, *network.decoders]
        self.blocks = nn.ModuleList()
        for number, block in enumerate(plain):
            assert isinstance(block, Block)
            self.blocks.append(FusedBlock(block, condition, dtype, number))
        self.first = FusedConv.fold(network.first, dtype)
        self.downs = nn.ModuleList(FusedConv.fold(down, dtype) for down in network.downs)
        self.ups = nn.ModuleList(FusedConv.fold(up, dtype) for up in network.ups)
        self.last = FusedConv(network.last, network.activation, dtype)
        # Not in use at present; calls from several threads have one each.
        self._idle: list[Buffers] = []
        listens = [config.attentive or modulated for modulated in config.modulated_blocks]
        self.shared_blocks = listens.index(True) if any(listens) else len(plain)

    @torch.no_grad()
    def forward(
        self, mixture_spec: Float[Tensor, "batch plane frame bin"]
    ) -> Float[Tensor, "batch condition plane frame bin"]:
        """Estimate all conditions' sources, complex planes as channels."""
        (model,) = self._model
        model.network.check_frames(mixture_spec.shape[2])
        with torch.autocast(mixture_spec.device.type, enabled=False):
            seen = model.network_input(mixture_spec.float())
            buffers = self._idle.pop() if self._idle else Buffers()
            estimates = [
                model.to_spectrogram(model.to_estimate(output.mT.float(), seen), mixture_spec)
                for output in self._outputs(seen.mT.to(self.dtype), buffers)
            ]
            self._idle.append(buffers)
        return torch.stack(estimates, dim=1)

    def _outputs(self, seen: Tensor, buffers: Buffers) -> Iterator[Tensor]:
        """Yield the network's output [batch, channel, bin, frame] for each condition.

        What is shared is run once, the rest for one condition after the other, because its
        features then stay in the CPU's cache.
        """
        split, count = self.shared_blocks, len(self.conditions)
        skips: list[SkipState] = []
        x = self.first(channels_last(seen), buffers)
        for number in range(split):
            mixed = self._mix(number, x, skips, buffers)
            x = next(self._block(number).finish(mixed, [0], buffers))
            if number < self.levels:
                skips.append(x)
        if split == len(self.blocks):
            yield from [self.last(x, buffers)] * count
            return
        mixed = self._mix(split, x, skips, buffers)
        # What shared skips add to the decoders is shared as well.
        begun = [
            self._block(2 * self.levels - level).begin(skip) for level, skip in enumerate(skips)
        ]
        heads = self._block(split).finish(mixed, range(count), buffers)
        for which, head in enumerate(heads):
            yield self._rest(which, head, list(begun), buffers)

    def _rest(self, which: int, x: Tensor, skips: list[SkipState], buffers: Buffers) -> Tensor:
        """Run the blocks after the shared ones for one condition."""
        if self.shared_blocks < self.levels:
            skips.append(x)
        for number in range(self.shared_blocks + 1, len(self.blocks)):
            mixed = self._mix(number, x, skips, buffers)
            x = next(self._block(number).finish(mixed, [which], buffers))
            if number < self.levels:
                skips.append(x)
        return self.last(x, buffers)

    def _mix(self, number: int, x: Tensor, skips: list[SkipState], buffers: Buffers) -> Tensor:
        """Bring the last block's features to this block's resolution, and mix them."""
        block = self._block(number)
        if number == 0:
            return block.mix(x, None, buffers)
        if number <= self.levels:
            return block.mix(self.downs[number - 1](x, buffers), None, buffers)
        high = self.ups[number - self.levels - 1](x, buffers)
        return block.mix(high, skips.pop(), buffers)

    def _block(self, number: int) -> FusedBlock:
        block = self.blocks[number]
        assert isinstance(block, FusedBlock)
        return block
