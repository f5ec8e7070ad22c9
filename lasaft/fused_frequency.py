"""The frequency transforms' inference forms: a few frames at a time, so that they stay in cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn

from lasaft.conditioning import Condition
from lasaft.frequency import Attention, FrequencyLayer, LaSAFT, LightSAFT, ResidualTDF

# Rows (frames x channels) that go through the layers at once: enough for the matrix product to
# be fast, few enough for its result to stay in a core's cache.
_ROWS = 192


def norm_as_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return float64 scale and shift [channel] of a BatchNorm in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift + norm.bias.detach().double() if norm.affine else shift


class FusedLayer(nn.Module):
    """A frequency layer whose BatchNorm scales its input instead of its output.

    Both give the same, because BatchNorm scales whole rows: s * (x W) = (s * x) W.

    Args:
        parts: into how many equal runs the outputs are split; each is computed by itself.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: FrequencyLayer, outputs: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        scale, shift = norm_as_affine(layer.norm)
        weight = layer.linear.weight.detach().mT[:, outputs].permute(1, 0, 2)
        bias = shift[:, None]
        if layer.linear.bias is not None:
            linear_bias = layer.linear.bias.detach().double()[outputs]
            bias = scale[:, None] * linear_bias[:, None] + shift[:, None]
        else:
            bias = bias.expand(len(outputs), -1, -1)
        # [part, input, output], [channel, 1] and [part, channel, 1 or output]
        self.register_buffer("weight", weight.to(dtype).contiguous())
        self.register_buffer("scale", scale[:, None].to(dtype))
        self.register_buffer("bias", bias.to(dtype).contiguous())
        self.activation = layer.activation

    def forward(self, rows: Tensor, part: int = 0) -> Tensor:
        """Return one part for rows [frame, channel, input] that ``scale`` has scaled."""
        frames, channels, inputs = rows.shape
        y = torch.mm(rows.reshape(-1, inputs), self.weight[part]).view(frames, channels, -1)
        y.add_(self.bias[part])
        # Other activations find the channels where they expect them, on axis 1.
        return y.relu_() if isinstance(self.activation, nn.ReLU) else self.activation(y)


class FusedFrequency(nn.Module):
    """x + transform(x), for several conditions that share x."""

    def __init__(self, first: FusedLayer) -> None:
        super().__init__()
        self.first = first

    def changes(self, rows: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return the transform of rows [frame, channel, bin] for each condition."""
        raise NotImplementedError

    def forward(self, x: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return x + its transform for each condition; a single one overwrites ``x``."""
        batch, channels, frames, _ = x.shape
        several = len(conditions) > 1
        results = [torch.empty_like(x) for _ in conditions] if several else [x]
        step = max(1, _ROWS // channels)
        for item, start in product(range(batch), range(0, frames, step)):
            block = x[item, :, start : start + step].transpose(0, 1)
            rows = torch.empty(block.shape, dtype=x.dtype, device=x.device)
            torch.mul(block, self.first.scale, out=rows)
            for result, change in zip(results, self.changes(rows, conditions), strict=True):
                place = result[item, :, start : start + step].transpose(0, 1)
                torch.add(block, change, out=place)
        return results


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

    def changes(self, rows: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Squeeze and expand."""
        rows = self.first(rows)
        for layer in self.others:
            assert isinstance(layer, FusedLayer)
            rows = layer(rows.mul_(layer.scale))
        return [rows] * len(conditions)


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

    def changes(self, rows: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return the attended sum of the latent sources' values."""
        if self.first is not self.expand:
            rows = self.first(rows).mul_(self.expand.scale)
        sums: list[Tensor] = []
        for latent in range(len(self.expand.weight)):
            value = self.expand(rows, latent)
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

    def changes(self, rows: Tensor, conditions: Sequence[int]) -> list[Tensor]:
        """Return the expansion of the attended bottlenecks."""
        latent = len(self.weights[0])
        values = self.first(rows).unflatten(-1, (latent, -1)).unbind(-2)
        return [self._change(values, self.weights[which]) for which in conditions]

    def _change(self, values: Sequence[Tensor], weights: list[float]) -> Tensor:
        total = values[0] * weights[0]
        for value, weight in zip(values[1:], weights[1:], strict=True):
            total.add_(value, alpha=weight)
        return total if self.expand is None else self.expand(total.mul_(self.expand.scale))


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
