"""The blocks' inference forms: BatchNorm folded away, nothing concatenated, little memory moved."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lasaft.blocks import Block, ConvNorm, DenseConvolutions
from lasaft.conditioning import Condition, FiLM, PoCM
from lasaft.fused_frequency import FusedFrequency, build_fused_frequency, norm_as_affine
from lasaft.tiles import TILE, Direct, Domain, Tiled

# Two layers' convolutions of one input run as one: 24 output channels leave a third of the vector
# units' lanes idle, 48 leave none (1.4 times the speed on AVX-512).
_TOGETHER = 2


class FusedConv(nn.Module):
    """A convolution with its BatchNorm folded in, then an activation."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        conv: nn.Conv2d | nn.ConvTranspose2d,
        act: nn.Module,
        dtype: torch.dtype,
        norm: nn.BatchNorm2d | None = None,
    ) -> None:
        super().__init__()
        weight, bias = fold_norm(conv, norm)
        self.register_buffer("weight", as_channels_last(weight.to(dtype)))
        self.register_buffer("bias", bias.to(dtype))
        self.activation = act
        self.stride, self.padding = conv.stride, padding_of(conv)

    @staticmethod
    def fold(module: nn.Module, dtype: torch.dtype) -> FusedConv | FusedUpsampling:
        """Return the fused form of a convolution with BatchNorm and activation."""
        assert isinstance(module, ConvNorm)
        if isinstance(module.conv, nn.ConvTranspose2d):
            return FusedUpsampling(module.conv, module.activation, dtype, module.norm)
        return FusedConv(module.conv, module.activation, dtype, module.norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of a channels-last tensor."""
        y = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return activate_(y, self.activation)


class FusedUpsampling(nn.Module):
    """A transposed convolution whose windows do not overlap: one product, then a rearrangement.

    Three times as fast as the transposed convolution on a CPU.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        conv: nn.ConvTranspose2d,
        act: nn.Module,
        dtype: torch.dtype,
        norm: nn.BatchNorm2d | None,
    ) -> None:
        super().__init__()
        assert conv.stride == conv.kernel_size
        weight, bias = fold_norm(conv, norm)
        self.scale = tuple(conv.kernel_size)
        windows = weight.permute(0, 2, 3, 1).flatten(1)
        self.register_buffer("weight", windows.contiguous().to(dtype))
        self.register_buffer("bias", bias.repeat(math.prod(self.scale)).to(dtype))
        self.activation = act

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of a channels-last tensor at a higher resolution."""
        points = x.permute(0, 2, 3, 1)
        batch, frames, bins, _ = points.shape
        windows = torch.addmm(self.bias, points.flatten(0, 2), self.weight)
        windows = windows.view(batch, frames, bins, *self.scale, -1).transpose(2, 3)
        high = windows.reshape(batch, frames * self.scale[0], bins * self.scale[1], -1)
        return activate_(high.permute(0, 3, 1, 2), self.activation)


def padding_of(conv: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, int]:
    """Return the zeros on each side of frames and bins."""
    assert not isinstance(conv.padding, str)
    frames, bins = conv.padding
    return frames, bins


def fold_norm(
    conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d | None
) -> tuple[Tensor, Tensor]:
    """Return float64 weight and bias of the convolution with its BatchNorm in it."""
    weight = conv.weight.detach().double()
    bias = torch.zeros(conv.out_channels, dtype=torch.float64, device=weight.device)
    if conv.bias is not None:
        bias = conv.bias.detach().double()
    if norm is None:
        return weight, bias
    scale, shift = norm_as_affine(norm)
    outputs = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    return weight * scale.view(outputs), bias * scale + shift


def activate_(x: Tensor, act: nn.Module) -> Tensor:
    """Apply an activation, in place where that is possible."""
    return x.relu_() if isinstance(act, nn.ReLU) else act(x)


def as_channels_last(x: Tensor) -> Tensor:
    """Return ``x`` with its channels innermost."""
    return x.contiguous(memory_format=torch.channels_last)


# Partial sums of a block's layers: for each group of layers its components.
Sums = list[list[Tensor]]
SkipState = Tensor | Sums


class Push(nn.Module):
    """What one tensor adds to every layer that sees it.

    Args:
        first: the first such layer.
        weights: of the layers from ``first`` on: [growth, channel, frame, bin] each.
        biases: of the same layers, or None if another push brings them.
        groups: the layers of each group.
    """

    def __init__(
        self,
        first: int,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor] | None,
        groups: Sequence[Sequence[int]],
        domain: Domain,
    ) -> None:
        super().__init__()
        # Group, the first output channel of it that this push reaches, number of components.
        self.places: list[tuple[int, int, int]] = []
        for number, group in enumerate(groups):
            reached = [layer - first for layer in group if layer >= first]
            if not reached:
                continue
            kernels = domain.kernels(torch.cat([weights[layer] for layer in reached]))
            bias = None if biases is None else torch.cat([biases[layer] for layer in reached])
            offsets = [None] * len(kernels) if bias is None else domain.offsets(bias)
            for part, (kernel, offset) in enumerate(zip(kernels, offsets, strict=True)):
                self.register_buffer(f"weight{len(self.places)}_{part}", as_channels_last(kernel))
                self.register_buffer(f"bias{len(self.places)}_{part}", offset)
            missed = (len(group) - len(reached)) * len(weights[0])
            self.places.append((number, missed, len(kernels)))

    def start(self, x: list[Tensor], sums: Sums | None) -> Sums:
        """Return new sums with a block input's components in them; ``sums`` stay as they are."""
        fresh = [self._products(place, x) for place in range(len(self.places))]
        for new, old in zip(fresh, sums or (), strict=False):
            for product, total in zip(new, old, strict=True):
                product.add_(total)
        return fresh

    def add(self, x: list[Tensor], sums: Sums) -> None:
        """Add a layer's components to the sums of those after it."""
        for place, (group, channel, _) in enumerate(self.places):
            for product, total in zip(self._products(place, x), sums[group], strict=True):
                total[:, channel:].add_(product)

    def _products(self, place: int, x: list[Tensor]) -> list[Tensor]:
        return [self._convolve(x[part], f"{place}_{part}") for part in range(self.places[place][2])]

    def _convolve(self, x: Tensor, name: str) -> Tensor:
        weight, bias = getattr(self, f"weight{name}"), getattr(self, f"bias{name}")
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        return functional.conv2d(x, weight, bias, padding=padding)


class FusedDense(nn.Module):
    """Dense convolutions as sums: every tensor is convolved once for all layers that see it."""

    def __init__(self, dense: DenseConvolutions, domain: Domain) -> None:
        super().__init__()
        layers = [layer for layer in dense.layers if isinstance(layer, ConvNorm)]
        count, self.growth, self.domain = len(layers), dense.growth, domain
        self.activation = layers[0].activation
        ends = reversed(range(count, 0, -_TOGETHER))
        groups = [range(max(end - _TOGETHER, 0), end) for end in ends]
        # Group and first channel of each layer's sum.
        self.places = [
            (number, place * self.growth)
            for number, group in enumerate(groups)
            for place in range(len(group))
        ]
        folded = [fold_norm(layer.conv, layer.norm) for layer in layers]
        # Newest first: the layers before, then the block's inputs.
        split = [
            weight.split([self.growth] * layer + list(dense.inputs), dim=1)
            for layer, (weight, _) in enumerate(folded)
        ]
        biases = [bias for _, bias in folded]
        inputs = len(dense.inputs)
        self.inputs = nn.ModuleList(
            Push(0, [s[n - inputs] for s in split], None if n else biases, groups, domain)
            for n in range(inputs)
        )
        later = [range(layer + 1, count) for layer in range(count - 1)]
        self.outputs = nn.ModuleList(
            Push(layer + 1, [split[one][one - layer - 1] for one in after], None, groups, domain)
            for layer, after in enumerate(later)
        )

    def begin(self, skip: Tensor) -> Sums:
        """Return what a skip adds to the layers, for use with many first inputs."""
        return self._input(1).start(self.domain.enter(skip), None)

    def forward(self, x: Tensor, sums: Sums | None = None) -> Tensor:
        """Return what the last layer makes of the block's first input and the skip's sums."""
        sums = self._input(0).start(self.domain.enter(x), sums)
        for (group, channel), push in zip(self.places, [*self.outputs, None], strict=True):
            parts = [total[:, channel : channel + self.growth] for total in sums[group]]
            new = self._activate(self.domain.leave(parts))
            if not isinstance(push, Push):
                return new
            push.add(self.domain.enter(new), sums)
        raise AssertionError("a block has at least one layer")

    def _activate(self, x: Tensor) -> Tensor:
        # In place unless x is a slice, which has to be copied for the convolutions anyhow.
        if x.is_contiguous(memory_format=torch.channels_last):
            return activate_(x, self.activation)
        return as_channels_last(self.activation(x))

    def _input(self, number: int) -> Push:
        push = self.inputs[number]
        assert isinstance(push, Push)
        return push


class DenseMixing(nn.Module):
    """Dense convolutions, tiled where kernel and frame count allow it."""

    def __init__(self, dense: DenseConvolutions, dtype: torch.dtype) -> None:
        super().__init__()
        self.direct = FusedDense(dense, Direct()).to(dtype)
        # Tiles add and subtract what bfloat16 cannot tell apart.
        tiles = dtype == torch.float32 and dense.kernel[0] == 3
        self.tiled = FusedDense(dense, Tiled()).to(dtype) if tiles else None

    def begin(self, skip: Tensor) -> SkipState:
        """Return what a skip adds to the layers, for use with many first inputs."""
        return self._form(skip).begin(skip)

    def forward(self, x: Tensor, skip: SkipState | None = None) -> Tensor:
        """Mix the inputs."""
        form = self._form(x)
        return form(x, form.begin(skip) if isinstance(skip, Tensor) else skip)

    def _form(self, x: Tensor) -> FusedDense:
        return self.direct if self.tiled is None or x.shape[2] % TILE else self.tiled


class PlainMixing(nn.Module):
    """Any other mixing, as it is."""

    def __init__(self, mixing: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.mixing = copy.deepcopy(mixing).eval().to(dtype)

    def begin(self, skip: Tensor) -> SkipState:
        """Return the skip."""
        return skip

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Mix the inputs."""
        return as_channels_last(self.mixing(x) if skip is None else self.mixing(x, skip))


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

    def forward(self, x: Tensor, which: int) -> Tensor:
        """Scale and shift for one of the conditions."""
        return torch.addcmul(self.beta[which], x, self.gamma[which])


class FusedPoCM(nn.Module):
    """PoCM with each condition's matrix at hand: one product over all points."""

    gamma: Tensor
    beta: Tensor

    def __init__(self, pocm: PoCM, condition: Condition, dtype: torch.dtype) -> None:
        super().__init__()
        gamma, beta = pocm.weights(condition)
        self.gated = pocm.gated
        self.register_buffer("gamma", gamma.mT.contiguous().to(dtype))
        self.register_buffer("beta", beta.to(dtype))

    def forward(self, x: Tensor, which: int) -> Tensor:
        """Mix the channels for one of the conditions, as a gate or as it is."""
        points = x.permute(0, 2, 3, 1)
        mix = torch.addmm(self.beta[which], points.flatten(0, 2), self.gamma[which])
        if self.gated:
            mix = mix.sigmoid_().mul_(points.flatten(0, 2))
        return mix.view(points.shape).permute(0, 3, 1, 2)


class FusedBlock(nn.Module):
    """The inference form of a block for a list of conditions."""

    def __init__(self, block: Block, condition: Condition, dtype: torch.dtype) -> None:
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

    def begin(self, skip: SkipState) -> SkipState:
        """Do with a shared skip what can be done without the block's other input."""
        assert isinstance(skip, Tensor)
        return self.mixing.begin(skip)

    def mix(self, x: Tensor, skip: SkipState | None = None) -> Tensor:
        """Mix the inputs: no condition plays a part in it."""
        return self.mixing(x, skip)

    def finish(self, mixed: Tensor, conditions: Sequence[int]) -> Iterator[Tensor]:
        """Yield the block's features for each condition; ``mixed`` may be overwritten."""
        if self.modulation is None:
            yield from self._transform(mixed, conditions)
            return
        for which in conditions:
            yield from self._transform(self.modulation(mixed, which), [which])

    def _transform(self, x: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        return [x] * len(conditions) if self.frequency is None else self.frequency(x, conditions)
