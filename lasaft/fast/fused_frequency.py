"""Fast forms of the frequency transforms: a few frames at a time, so that they stay in cache.

A transform works on columns: the features of one item [channel, bin, frame] as a matrix
[bin, frame x channel], which channels-last memory already is. A linear layer over the bins of every
frame and channel is then one matrix product W @ columns. Its BatchNorm, scale * y + shift with a
scale for each channel, commutes with W, which mixes bins only: scale * (W x) = W (scale * x). So
columns are scaled before the product, and the shift is the product's bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lasaft.fast.fused_conv import norm_as_affine
from lasaft.fast.onednn import relu_of_product
from lasaft.network.frequency import (
    Attention,
    FrequencyLayer,
    LaSAFTTransform,
    LightSAFTTransform,
    ResidualTDF,
    Unchanged,
)
from lasaft.network.modulations import Condition

# Bytes of as many frames as go through the layers at once on a CPU: enough for the matrix products
# to be fast, few enough for their results to stay in a core's cache.
_BYTES = 384 * 1024


class FusedLayer(nn.Module):
    """activation(W @ (scale * columns) + bias): equals a FrequencyLayer on scaled columns.

    Args:
        layer: the plain form.
        dtype: of weights and features.
        order: permutation [output] of the layer's outputs: output i of this one is output
            ``order[i]`` of ``layer`` (None: as they are).

    Attributes:
        weight: [output, input].
        scale: [channel], of the BatchNorm; the caller multiplies the columns by it.
        bias: [1, channel], or [output, channel] where the linear layer has a bias of its own.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(
        self, layer: FrequencyLayer, dtype: torch.dtype, order: Tensor | None = None
    ) -> None:
        super().__init__()
        scale, shift = norm_as_affine(layer.norm)
        outputs = slice(None) if order is None else order
        bias = shift[None]
        if layer.linear.bias is not None:
            bias = layer.linear.bias.detach().double()[outputs, None] * scale + shift
        self.register_buffer("weight", layer.linear.weight.detach()[outputs].to(dtype, copy=True))
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("bias", bias.to(dtype))
        self.activation = layer.activation

    def scaled_(self, columns: Tensor) -> Tensor:
        """Multiply columns [input, frame x channel] by the scale of their channel, in place."""
        return columns.view(len(columns), -1, len(self.scale)).mul_(self.scale).flatten(1)

    def forward(self, columns: Tensor) -> Tensor:
        """Map scaled columns [input, frame x channel] to [output, frame x channel]."""
        frames = columns.shape[1] // len(self.scale)
        bias = self.bias.repeat(1, frames)
        if isinstance(self.activation, nn.ReLU) and len(bias) == 1:
            return relu_of_product(self.weight, columns, bias[0])
        y = torch.addmm(bias, self.weight, columns)
        # Other activations find the channels where they expect them, on axis 1.
        y = y.view(len(y), frames, -1).mT
        return self.activation(y).mT.reshape(len(y), -1)


class FusedFrequency(nn.Module):
    """x + transform(x), for several conditions that share x.

    Args:
        first: the layer that the columns enter; they are scaled for it.
    """

    def __init__(self, first: FusedLayer) -> None:
        super().__init__()
        self.first = first

    def changes(self, columns: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return transform(x) [bin, frame x channel] for each condition.

        Args:
            columns: [bin, frame x channel], scaled for the first layer.
            conditions: indices into the list of conditions.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, conditions: Sequence[int], results: Sequence[Tensor]) -> None:
        """Write x + transform(x) for each condition.

        Args:
            x: [batch, channel, bin, frame].
            conditions: indices into the list of conditions.
            results: like ``x``, one for each condition; ``x`` itself may be one of them.
        """
        channels = x.shape[1]
        step = x.shape[3]
        if x.device.type == "cpu":
            frame = x.itemsize * channels * x.shape[2]
            step = max(1, _BYTES * torch.get_num_threads() // frame)
        for item in range(len(x)):
            blocks = _columns(x[item], step)
            places = zip(*(_columns(result[item], step) for result in results), strict=True)
            for block, targets in zip(blocks, places, strict=True):
                scale = self.first.scale.repeat(block.shape[1] // channels)
                changes = self.changes(block * scale, conditions)
                for target, change in zip(targets, changes, strict=True):
                    torch.add(block, change, out=target)


def _columns(x: Tensor, step: int) -> tuple[Tensor, ...]:
    """Split ``x`` [channel, bin, frame] into views [bin, frame x channel] of ``step`` frames."""
    return x.permute(1, 2, 0).flatten(1).split(step * len(x), dim=1)


class FusedTDF(FusedFrequency):
    """x + TDF(x): one or two layers, the same for every condition."""

    def __init__(self, frequency: ResidualTDF, dtype: torch.dtype) -> None:
        first, *others = (
            FusedLayer(layer, dtype) for layer in frequency.tdf if isinstance(layer, FrequencyLayer)
        )
        super().__init__(first)
        self.others = nn.ModuleList(others)

    def changes(self, columns: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return TDF(x), the same [bin, frame x channel] for every condition."""
        columns = self.first(columns)
        for layer in self.others:
            assert isinstance(layer, FusedLayer)
            columns = layer(layer.scaled_(columns))
        return [columns] * len(conditions)


class FusedAttention(nn.Module):
    """Sums over the latent sources, weighted by each condition's attention.

    Attributes:
        weights: [condition, latent source], each row of sum 1.
    """

    weights: Tensor

    def __init__(self, attention: Attention, condition: Condition, dtype: torch.dtype) -> None:
        super().__init__()
        assert condition.vector is not None
        self.register_buffer("weights", attention(condition.vector).to(dtype))

    def forward(self, values: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return the weighted sums [row, column] for each condition.

        Args:
            values: [latent source x row, column]: all rows of the first latent source come first.
            conditions: indices into the list of conditions.
        """
        latent = self.weights.shape[1]
        sums = self.weights[list(conditions)] @ values.view(latent, -1)
        return list(sums.view(len(conditions), -1, values.shape[1]))


class FusedLaSAFT(FusedFrequency):
    """x + the attended sum of one TDF for each latent source.

    The last layer's outputs are put in the order latent source, bin (in the plain form: bin,
    latent source), so that one matrix product [condition, latent] @ [latent, bin x column] makes
    the sums of all conditions.
    """

    def __init__(
        self, frequency: LaSAFTTransform, condition: Condition, dtype: torch.dtype
    ) -> None:
        *before, last = (layer for layer in frequency.tdf if isinstance(layer, FrequencyLayer))
        attention = FusedAttention(frequency.attention, condition, dtype)
        # Output f * K + k belongs to bin f of latent source k.
        outputs = torch.arange(last.linear.out_features)
        order = outputs.view(-1, attention.weights.shape[1]).T.flatten()
        expand = FusedLayer(last, dtype, order)
        super().__init__(FusedLayer(before[0], dtype) if before else expand)
        self.expand, self.attention = expand, attention

    def changes(self, columns: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return the attended sums [bin, frame x channel] of the latent sources' values."""
        if self.first is not self.expand:
            columns = self.expand.scaled_(self.first(columns))
        return self.attention(self.expand(columns), conditions)


class FusedLightSAFT(FusedFrequency):
    """x + an expansion of the attended sum of the latent sources' bottlenecks.

    The attended sums differ from condition to condition, so each is expanded by itself. Without
    a bottleneck (``expand`` None) the sums are the result.
    """

    def __init__(
        self, frequency: LightSAFTTransform, condition: Condition, dtype: torch.dtype
    ) -> None:
        super().__init__(FusedLayer(frequency.squeeze, dtype))
        self.attention = FusedAttention(frequency.attention, condition, dtype)
        self.expand = None
        if isinstance(frequency.expand, FrequencyLayer):
            self.expand = FusedLayer(frequency.expand, dtype)

    def changes(self, columns: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return the expansions [bin, frame x channel] of the attended bottlenecks."""
        sums = self.attention(self.first(columns), conditions)
        if self.expand is None:
            return sums
        return [self.expand(self.expand.scaled_(total)) for total in sums]


def build_fused_frequency(
    frequency: nn.Module, condition: Condition, dtype: torch.dtype
) -> FusedFrequency | None:
    """Return the fast form of a block's frequency transform; None for a block without one."""
    if isinstance(frequency, ResidualTDF):
        return FusedTDF(frequency, dtype)
    if isinstance(frequency, LaSAFTTransform):
        return FusedLaSAFT(frequency, condition, dtype)
    if isinstance(frequency, LightSAFTTransform):
        return FusedLightSAFT(frequency, condition, dtype)
    assert isinstance(frequency, Unchanged), f"{type(frequency).__name__} has no fast form"
    return None
