"""Fast form of DenseConvolutions: each layer is a sum of convolutions, one for each thing it sees.

Layer l of a dense block sees the outputs of the layers before it, newest first, and the block's
inputs (for a decoder: the upsampled features and the skip):

    y_l = activation(norm(conv_l([y_(l-1), ..., y_0, x, skip])))

Convolution is linear, so conv_l of the concatenation is the sum over the parts, each with its slice
of the kernel's input channels. The parts are added up in place. What a skip that all conditions
share adds to the layers is computed once (:meth:`FusedDense.begin`). :class:`TiledDense` does the
same sums on Winograd components (:mod:`lasaft.fast.winograd`), where 3-bin kernels need half the
multiplications. For the layout of features see :mod:`lasaft.fast`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lasaft.fast.buffers import Buffers
from lasaft.fast.fused_conv import activate_, channels_last, fold_norm
from lasaft.fast.onednn import add_convolution_
from lasaft.fast.winograd import (
    COMPONENTS,
    TILE,
    from_tiles,
    into_tiles,
    tiled_kernels,
    tiled_offsets,
)
from lasaft.network.blocks import ConvNorm, DenseConvolutions

# What a skip adds to each layer: [batch, growth, bin, frame], or, tiled, [component, tile, frame,
# growth].
Sums = list[Tensor]
# A decoder's skip: the features [batch, channel, bin, frame] themselves, or what they add.
SkipState = Tensor | Sums

# Tiles pay from so many points (bins x frames) on: below, the calls cost more than is saved.
_TILED_POINTS = 16384
# Points of a component that go through a layer at once on one core: a few MB, to stay in cache.
_STRIP_POINTS = 32768


class FusedDense(nn.Module):
    """Every layer as a sum of convolutions, added up in place.

    The buffer ``weight{l}_{s}_{c}`` is layer l's kernel [growth, channel, bin, frame] for what it
    sees from place s (0: first input, 1: skip, 2 + k: output of layer k), BatchNorm folded in;
    ``bias{l}_{c}`` [growth] comes with place 0. Component c is always 0 here.

    Args:
        dense: the plain form.
        dtype: of weights and features.
        kernels: splits a kernel into its components (Winograd), or leaves it whole.
        offsets: the same for a bias.
    """

    def __init__(
        self,
        dense: DenseConvolutions,
        dtype: torch.dtype,
        kernels: Callable[[Tensor], list[Tensor]] = lambda weight: [weight],
        offsets: Callable[[Tensor], list[Tensor]] = lambda bias: [bias],
    ) -> None:
        super().__init__()
        self.growth, self.count = dense.growth, len(dense.layers)
        inputs = list(range(len(dense.inputs)))
        for number, layer in enumerate(dense.layers):
            assert isinstance(layer, ConvNorm)
            self.activation = layer.activation
            weight, bias = fold_norm(layer.conv, layer.norm)
            for component, offset in enumerate(offsets(bias)):
                self.register_buffer(f"bias{number}_{component}", offset.to(dtype))
            # Newest first: the layers before (2, 3, ...), then the block's inputs (0, 1).
            seen = [*range(number + 1, 1, -1), *inputs]
            parts = weight.split([self.growth] * number + list(dense.inputs), dim=1)
            for source, part in zip(seen, parts, strict=True):
                for component, kernel in enumerate(kernels(part)):
                    name = f"weight{number}_{source}_{component}"
                    self.register_buffer(name, channels_last(kernel.to(dtype)))

    def begin(self, skip: Tensor) -> Sums:
        """Return what ``skip`` [batch, channel, bin, frame] adds to each layer's sum."""
        batch, _, *sizes = skip.shape
        sums = [
            skip.new_zeros(batch, *sizes, self.growth).permute(0, 3, 1, 2)
            for _ in range(self.count)
        ]
        for number, total in enumerate(sums):
            self._add(total, number, 1, skip)
        return sums

    def forward(self, x: Tensor, skip: SkipState | None, name: str, buffers: Buffers) -> Tensor:
        """Return the last layer's output [batch, growth, bin, frame].

        Args:
            x: the first input [batch, channel, bin, frame].
            skip: the second: as it is, or as :meth:`begin` made of it; None: there is none.
            name: of the buffer that holds the result.
            buffers: for intermediate results.
        """
        seen = {0: x, 1: skip} if isinstance(skip, Tensor) else {0: x}
        for number in range(self.count):
            place = name if number == self.count - 1 else f"layer{number}"
            total = buffers.features(place, x, self.growth)
            _start(total, None if isinstance(skip, Tensor | None) else skip[number])
            for source, features in seen.items():
                self._add(total, number, source, features)
            seen[number + 2] = activate_(total, self.activation)
        return seen[self.count + 1]

    def _add(self, total: Tensor, number: int, source: int, x: Tensor, component: int = 0) -> None:
        """Add to layer ``number``'s sum what it gets from place ``source``; 0 brings the bias."""
        bias = None if source else getattr(self, f"bias{number}_{component}")
        weight = getattr(self, f"weight{number}_{source}_{component}")
        add_convolution_(total, x, weight, bias)


class TiledDense(FusedDense):
    """The same sums for kernels of three bins, on components of tiles of four bins.

    Features [batch, channel, bin, frame] become components [component, tile, frame, channel], where
    ``tile`` counts the groups of four bins of all items. In this domain the kernel runs over frames
    alone, separately for each component; the sum over what a layer sees is taken there, then
    transformed back and activated. The tiles are handled in strips that stay in a core's cache.
    """

    def __init__(self, dense: DenseConvolutions, dtype: torch.dtype) -> None:
        super().__init__(dense, dtype, tiled_kernels, tiled_offsets)

    def begin(self, skip: Tensor) -> Sums:
        """Return what a skip adds to each layer: [component, tile, frame, growth]."""
        entered = self._enter(skip, "skip", Buffers())
        shape = (*entered.shape[:3], self.growth)
        sums = [skip.new_zeros(shape) for _ in range(self.count)]
        for number, total in enumerate(sums):
            self._add_tiles(total, number, 1, entered)
        return sums

    def forward(self, x: Tensor, skip: SkipState | None, name: str, buffers: Buffers) -> Tensor:
        """See :meth:`FusedDense.forward`."""
        frames = x.shape[3]
        step = max(1, _STRIP_POINTS * torch.get_num_threads() // frames)
        seen = {0: self._enter(x, "x", buffers)}
        if isinstance(skip, Tensor):
            seen[1] = self._enter(skip, "skip", buffers)
        for number in range(self.count):
            last = number == self.count - 1
            y = buffers.features(name if last else "y", x, self.growth)
            sums = None if isinstance(skip, Tensor | None) else skip[number]
            tiles = y.permute(0, 2, 3, 1).view(-1, TILE, frames, self.growth)
            for start in range(0, len(tiles), step):
                strip = slice(start, start + step)
                total = self._total(number, seen, sums, strip, buffers)
                room = buffers.take("room", (2, *total.shape[1:]), x)
                from_tiles(total.flatten(2), tiles[strip].flatten(2), room.flatten(2))
                activate_(_as_features(tiles[strip].flatten(0, 1)[None])[0], self.activation)
            if last:
                return y
            seen[number + 2] = self._enter(y, f"layer{number}", buffers)
        raise AssertionError("a block has at least one layer")

    def _total(
        self,
        number: int,
        seen: dict[int, Tensor],
        sums: Tensor | None,
        strip: slice,
        buffers: Buffers,
    ) -> Tensor:
        """Return a layer's sum [component, tile, frame, growth] for the tiles of one strip."""
        x = seen[0][:, strip]
        total = buffers.take("total", (*x.shape[:3], self.growth), x)
        _start(total, None if sums is None else sums[:, strip])
        for source, components in seen.items():
            self._add_tiles(total, number, source, components[:, strip])
        return total

    def _add_tiles(self, total: Tensor, number: int, source: int, x: Tensor) -> None:
        """Add what ``x`` brings: both [component, tile, frame, channel]."""
        pairs = zip(_as_features(total), _as_features(x), strict=True)
        for component, (into, part) in enumerate(pairs):
            self._add(into, number, source, part, component)

    def _enter(self, x: Tensor, name: str, buffers: Buffers) -> Tensor:
        """Return features [batch, channel, bin, frame] as [component, tile, frame, channel]."""
        batch, channels, bins, frames = x.shape
        shape = (COMPONENTS, batch, bins // TILE, frames, channels)
        components = buffers.take(name, shape, x)
        room = buffers.take("room", (2, *shape[1:]), x)
        into_tiles(x.permute(0, 2, 3, 1).flatten(2), components.flatten(3), room.flatten(3))
        return components.flatten(1, 2)


class DenseMixing(nn.Module):
    """Dense convolutions: :class:`TiledDense` on large features on a CPU, else the direct form."""

    def __init__(self, dense: DenseConvolutions, dtype: torch.dtype) -> None:
        super().__init__()
        self.direct = FusedDense(dense, dtype)
        self.tiled = TiledDense(dense, dtype) if dense.kernel[1] == 3 else None

    def begin(self, skip: Tensor) -> SkipState:
        """See :meth:`FusedDense.begin`; features of the same size must use it."""
        return self._form(skip).begin(skip)

    def forward(self, x: Tensor, skip: SkipState | None, name: str, buffers: Buffers) -> Tensor:
        """See :meth:`FusedDense.forward`."""
        return self._form(x)(x, skip, name, buffers)

    def _form(self, x: Tensor) -> FusedDense:
        _, _, bins, frames = x.shape
        few = bins * frames < _TILED_POINTS or x.device.type != "cpu"
        return self.direct if self.tiled is None or few or bins % TILE else self.tiled


def _start(total: Tensor, sums: Tensor | None) -> None:
    if sums is None:
        total.zero_()
    else:
        total.copy_(sums)


def _as_features(points: Tensor) -> tuple[Tensor, ...]:
    """Split [number, row, column, channel] into views [1, channel, row, column]."""
    return points[:, None].permute(0, 1, 4, 2, 3).unbind()
