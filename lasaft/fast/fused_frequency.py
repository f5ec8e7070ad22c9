"""Fast form of the frequency transforms: a few frames at a time, so that they stay in cache.

A transform works on columns: the features of one item [channel, bin, frame] as a matrix
[bin, frame x channel], which channels-last memory already is. A linear layer over the bins of every
frame and channel is then one matrix product W @ columns. Its BatchNorm, scale * y + shift with a
scale for each channel, commutes with W, which mixes bins only: scale * (W x) = W (scale * x). So
columns are scaled before the product, and the shift is the product's bias.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lasaft.fast.fused_conv import channels_last, foldable, norm_as_affine
from lasaft.fast.onednn import relu_of_product
from lasaft.network.frequency import (
    FrequencyLayer,
    LaSAFTTransform,
    LightSAFTTransform,
    ListeningTransform,
    RecurrentTDF,
    ResidualTDF,
    Unchanged,
)
from lasaft.network.modulations import Condition

# Numbers in as many frames as go through the layers at once on a CPU: enough for the matrix
# products to be fast, few enough for their results to stay in a core's cache.
_NUMBERS = 256 * 1024


class FusedLayer(nn.Module):
    """activation(W @ (scale * columns) + bias): equals a FrequencyLayer.

    The outputs of several ``latent`` sources, which alternate in ``layer``, become those of the
    first latent source, then of the second, and so on.
    """

    weight: Tensor  # [output, input]
    scale: Tensor  # [channel]
    bias: Tensor  # [1, channel], or [output, channel] where the linear layer has one of its own

    def __init__(self, layer: FrequencyLayer, dtype: torch.dtype, latent: int = 1) -> None:
        super().__init__()
        order = torch.arange(layer.linear.out_features).view(-1, latent).T.flatten()
        scale, shift = norm_as_affine(layer.norm)
        bias = shift[None]
        if layer.linear.bias is not None:
            bias = layer.linear.bias.detach().double()[order, None] * scale + shift
        self.register_buffer("weight", layer.linear.weight.detach()[order].to(dtype))
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("bias", bias.to(dtype))
        self.activation = layer.activation

    def forward(self, columns: Tensor) -> Tensor:
        """Map columns [input, frame x channel] to [output, frame x channel]."""
        frames = columns.shape[1] // len(self.scale)
        columns, bias = columns * self.scale.repeat(frames), self.bias.repeat(1, frames)
        if isinstance(self.activation, nn.ReLU) and len(bias) == 1:
            return relu_of_product(self.weight, columns, bias[0])
        y = torch.addmm(bias, self.weight, columns)
        # Other activations find the channels where they expect them, on axis 1.
        y = y.view(len(y), frames, -1).mT
        return self.activation(y).mT.reshape(len(y), -1)


class FusedFrequency(nn.Module):
    """x + transform(x), for several conditions that share x.

    Args:
        before: the layers before the attention; without attention, all of them.
        attention: weights [condition, latent source] of the sums over the latent sources, each row
            of sum 1; None: the transform is the same for every condition.
        after: the layers after the attention.
    """

    attention: Tensor | None

    def __init__(
        self, before: Iterable[nn.Module], attention: Tensor | None, after: Iterable[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.before, self.after = nn.Sequential(*before), nn.Sequential(*after)
        self.register_buffer("attention", attention)

    def forward(self, x: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return x + transform(x) [batch, channel, bin, frame] for each of the conditions.

        If there is one, the result is written over ``x``.
        """
        results = [x] if len(conditions) == 1 else [torch.empty_like(x) for _ in conditions]
        _, channels, bins, step = x.shape
        if x.device.type == "cpu":
            step = max(1, _NUMBERS * torch.get_num_threads() // (channels * bins))
        for item, *places in zip(x, *results, strict=True):
            parts = (_columns(part, step) for part in (item, *places))
            for block, *targets in zip(*parts, strict=True):
                changes = self.changes(block, list(conditions))
                for target, change in zip(targets, changes, strict=True):
                    torch.add(block, change, out=target)
        return results

    def changes(self, columns: Tensor, conditions: list[int]) -> list[Tensor]:
        """Return transform(x) [bin, frame x channel] for each condition."""
        values = self.before(columns)
        if self.attention is None:
            return [values] * len(conditions)
        # One product makes the sums of all conditions.
        values = values.view(self.attention.shape[1], -1)
        sums = (self.attention[conditions] @ values).view(len(conditions), -1, columns.shape[1])
        return [self.after(each) for each in sums]


def _columns(x: Tensor, step: int) -> tuple[Tensor, ...]:
    """Split ``x`` [channel, bin, frame] into views [bin, frame x channel] of ``step`` frames."""
    return x.permute(1, 2, 0).flatten(1).split(step * len(x), dim=1)


class PlainFrequency(nn.Module):
    """A transform without a fast form, run as it is for one condition after the other.

    Attributes:
        vector: [condition, size]; None: the transform is the same for every condition.
    """

    vector: Tensor | None

    def __init__(self, frequency: nn.Module, vector: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.frequency = copy.deepcopy(frequency).eval().to(dtype)
        self.register_buffer("vector", None if vector is None else vector.to(dtype))

    def forward(self, x: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return the transformed ``x`` [batch, channel, bin, frame] for each of the conditions."""
        if self.vector is None:
            return [channels_last(self.frequency(x.mT, Condition()).mT)] * len(conditions)
        vectors = [self.vector[which].expand(len(x), -1) for which in conditions]
        found = (self.frequency(x.mT, Condition(vector)).mT for vector in vectors)
        return [channels_last(each) for each in found]


def build_fused_frequency(
    frequency: nn.Module, condition: Condition, dtype: torch.dtype
) -> FusedFrequency | PlainFrequency | None:
    """Return the fast form of a block's frequency transform; None for a block without one."""

    def fused(*modules: nn.Module, latent: int = 1) -> list[FusedLayer]:
        layers = [layer for layer in modules if isinstance(layer, FrequencyLayer)]
        return [FusedLayer(layer, dtype, latent) for layer in layers]

    if isinstance(frequency, RecurrentTDF | ListeningTransform) or not foldable(frequency):
        attends = hasattr(frequency, "attention")
        return PlainFrequency(frequency, condition.vector if attends else None, dtype)
    if isinstance(frequency, ResidualTDF):
        return FusedFrequency(fused(*frequency.tdf), None)
    if isinstance(frequency, LaSAFTTransform | LightSAFTTransform):
        assert condition.vector is not None
        attention = frequency.attention(condition.vector).to(dtype)
        if isinstance(frequency, LightSAFTTransform):
            return FusedFrequency(fused(frequency.squeeze), attention, fused(frequency.expand))
        # Output f * K + k of the last layer belongs to bin f of latent source k.
        *first, last = frequency.tdf
        expand = fused(last, latent=attention.shape[1])
        return FusedFrequency([*fused(*first), *expand], attention)
    assert isinstance(frequency, Unchanged), f"{type(frequency).__name__} has no fast form"
    return None
