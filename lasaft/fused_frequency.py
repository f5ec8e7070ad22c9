"""The frequency transforms' inference forms: a few frames at a time, so that they stay in cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lasaft.conditioning import Condition
from lasaft.frequency import Attention, FrequencyLayer, LaSAFT, LightSAFT, ResidualTDF
from lasaft.fused_conv import norm_as_affine
from lasaft.onednn import relu_of_product

# Bytes of one bin of as many frames as go through the layers at once on a CPU: enough for the
# matrix products to be fast, few enough for their results to stay in a core's cache.
_BYTES = 384


class FusedLayer(nn.Module):
    """A frequency layer on columns: a column holds all bins of one channel of one frame.

    BatchNorm scales the layer's input instead of its output: W x s = W (x s).

    Args:
        parts: into how many equal runs the outputs are split; each is computed by itself.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: FrequencyLayer, outputs: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        scale, shift = norm_as_affine(layer.norm)
        bias = shift.expand(len(outputs), 1, -1)
        if layer.linear.bias is not None:
            linear_bias = layer.linear.bias.detach().double()[outputs]
            bias = linear_bias[..., None] * scale + shift
        # [part, output, input], [channel] and [part, 1 or output, channel]
        self.register_buffer("weight", layer.linear.weight.detach()[outputs].to(dtype))
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("bias", bias.to(dtype).contiguous())
        self.activation = layer.activation

    def scaled_(self, columns: Tensor) -> Tensor:
        """Return columns [input, frame x channel] times the scale of their channel, in place."""
        return columns.view(len(columns), -1, len(self.scale)).mul_(self.scale).flatten(1)

    def forward(self, columns: Tensor, part: int = 0) -> Tensor:
        """Return one part for columns [input, frame x channel] that ``scale`` has scaled."""
        frames = columns.shape[1] // len(self.scale)
        bias = self.bias[part].repeat(1, frames)
        if isinstance(self.activation, nn.ReLU) and len(bias) == 1:
            return relu_of_product(self.weight[part], columns, bias[0])
        y = torch.addmm(bias, self.weight[part], columns)
        # Other activations find the channels where they expect them, on axis 1.
        y = y.view(len(y), frames, -1).mT
        return self.activation(y).mT.reshape(len(y), -1)


class FusedFrequency(nn.Module):
    """x + transform(x), for several conditions that share x."""

    def __init__(self, first: FusedLayer) -> None:
        super().__init__()
        self.first = first

    def changes(self, columns: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return the transform of columns [bin, frame x channel] for each condition."""
        raise NotImplementedError

    def forward(self, x: Tensor, conditions: Sequence[int], results: Sequence[Tensor]) -> None:
        """Write x + its transform into one result for each condition; ``x`` may be one of them."""
        channels = x.shape[1]
        step = x.shape[3]
        if x.device.type == "cpu":
            step = max(1, _BYTES * torch.get_num_threads() // x.itemsize // channels)
        for item in range(len(x)):
            blocks = _columns(x[item], step)
            places = zip(*(_columns(result[item], step) for result in results), strict=True)
            for block, targets in zip(blocks, places, strict=True):
                scale = self.first.scale.repeat(block.shape[1] // channels)
                changes = self.changes(block * scale, conditions)
                for target, change in zip(targets, changes, strict=True):
                    torch.add(block, change, out=target)


def _columns(x: Tensor, step: int) -> tuple[Tensor, ...]:
    """[channel, bin, frame] -> [bin, frame x channel] of ``step`` frames each."""
    return x.permute(1, 2, 0).flatten(1).split(step * len(x), dim=1)


class FusedTDF(FusedFrequency):
    """TDF: the same for every condition."""

    def __init__(self, frequency: ResidualTDF, dtype: torch.dtype) -> None:
        first, *others = (
            FusedLayer(layer, _all_outputs(layer), dtype)
            for layer in frequency.tdf
            if isinstance(layer, FrequencyLayer)
        )
        super().__init__(first)
        self.others = nn.ModuleList(others)

    def changes(self, columns: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Squeeze and expand."""
        columns = self.first(columns)
        for layer in self.others:
            assert isinstance(layer, FusedLayer)
            columns = layer(layer.scaled_(columns))
        return [columns] * len(conditions)


class FusedLaSAFT(FusedFrequency):
    """LaSAFT, one latent source after the other: all their values together never exist."""

    def __init__(self, frequency: LaSAFT, condition: Condition, dtype: torch.dtype) -> None:
        *before, last = (layer for layer in frequency.tdf if isinstance(layer, FrequencyLayer))
        weights = _attention(frequency.attention, condition)
        latent = len(weights[0])
        # Output f * K + k belongs to bin f of latent source k.
        outputs = torch.arange(last.linear.out_features).view(-1, latent).T
        expand = FusedLayer(last, outputs, dtype)
        first = FusedLayer(before[0], _all_outputs(before[0]), dtype) if before else expand
        super().__init__(first)
        self.weights = weights
        self.expand = expand

    def changes(self, columns: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return the attended sum of the latent sources' values."""
        if self.first is not self.expand:
            columns = self.expand.scaled_(self.first(columns))
        sums: list[Tensor] = []
        for latent in range(len(self.expand.weight)):
            value = self.expand(columns, latent)
            weights = [self.weights[which][latent] for which in conditions]
            if not latent:
                sums = [value * weight for weight in weights]
                continue
            for total, weight in zip(sums, weights, strict=True):
                total.add_(value, alpha=weight)
        return sums


class FusedLightSAFT(FusedFrequency):
    """LightSAFT: attends to the bottlenecks, then expands."""

    def __init__(self, frequency: LightSAFT, condition: Condition, dtype: torch.dtype) -> None:
        super().__init__(FusedLayer(frequency.squeeze, _all_outputs(frequency.squeeze), dtype))
        self.weights = _attention(frequency.attention, condition)
        self.expand = None
        if isinstance(frequency.expand, FrequencyLayer):
            self.expand = FusedLayer(frequency.expand, _all_outputs(frequency.expand), dtype)

    def changes(self, columns: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return the expansion of the attended bottlenecks."""
        values = self.first(columns).chunk(len(self.weights[0]))
        return [self._change(values, self.weights[which]) for which in conditions]

    def _change(self, values: Sequence[Tensor], weights: list[float]) -> Tensor:
        total = values[0] * weights[0]
        for value, weight in zip(values[1:], weights[1:], strict=True):
            total.add_(value, alpha=weight)
        return total if self.expand is None else self.expand(self.expand.scaled_(total))


def build_fused_frequency(
    frequency: nn.Module, condition: Condition, dtype: torch.dtype
) -> FusedFrequency | None:
    """Return the inference form of a frequency transform; None if there is none."""
    if isinstance(frequency, ResidualTDF):
        return FusedTDF(frequency, dtype)
    if isinstance(frequency, LaSAFT):
        return FusedLaSAFT(frequency, condition, dtype)
    if isinstance(frequency, LightSAFT):
        return FusedLightSAFT(frequency, condition, dtype)
    return None


def _all_outputs(layer: FrequencyLayer) -> Tensor:
    return torch.arange(layer.linear.out_features)[None]


def _attention(attention: Attention, condition: Condition) -> list[list[float]]:
    """For each condition, the weight of each latent source."""
    assert condition.vector is not None
    return attention(condition.vector).tolist()
