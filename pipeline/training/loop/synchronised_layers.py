"""Layers that compute in many processes what they compute in one: BatchNorm and Dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional

from pipeline.data.windows.shares import share_of_process
from pipeline.training.loop.ranks import Ranks


def _add_up(sums: torch.Tensor) -> None:
    """Add the other processes' sums, if there are any, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(sums)


class _SyncedNormalise(torch.autograd.Function):
    """Normalise [batch, channel, ...] by the mean and variance over all processes.

    Sums are kept in float64, so that E[x^2] - E[x]^2 loses nothing that float32 could see.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        wide = x.double()
        count = torch.full((1,), x.numel() / x.shape[1], dtype=torch.float64, device=x.device)
        sums = torch.cat([wide.sum(axes), (wide * wide).sum(axes), count])
        _add_up(sums)
        channels = x.shape[1]
        mean = sums[:channels] / sums[-1]
        variance = (sums[channels:-1] / sums[-1] - mean * mean).clamp_min(0)
        shape = [1, channels] + [1] * (x.dim() - 2)
        scale = (variance + eps).rsqrt()
        normal = ((wide - mean.view(shape)) * scale.view(shape)).to(x.dtype)
        ctx.save_for_backward(normal, scale, sums[-1:])
        ctx.axes, ctx.shape = axes, shape
        ctx.mark_non_differentiable(mean, variance, sums)
        return normal, mean, variance, sums

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        normal, scale, count = ctx.saved_tensors
        grad = gradients[0]
        wide = grad.double()
        sums = torch.stack([wide.sum(ctx.axes), (wide * normal.double()).sum(ctx.axes)])
        _add_up(sums)
        # Of 16-bit gradients too the means need 32: their rounding adds up over all positions.
        kind = torch.promote_types(grad.dtype, torch.float32)
        mean_grad, mean_product = (sums / count).to(kind).view(2, *ctx.shape)
        centred = grad.to(kind) - mean_grad - normal.to(kind) * mean_product
        return (scale.to(kind).view(ctx.shape) * centred).to(grad.dtype), None


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A BatchNorm whose training statistics are those of all processes' batches together.

    One process computes them in the same way, so that the number of processes changes nothing.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm needs [batch, channel, ...], got {list(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise ``input`` [batch, channel, ...]; in eval mode as torch does."""
        if not self.training:
            return super().forward(input)
        normal, mean, variance, sums = _SyncedNormalise.apply(input, self.eps)  # type: ignore[misc]
        if self.track_running_stats:
            self._update(mean, variance, sums[-1])
        if not self.affine:
            return normal
        shape = [1, -1] + [1] * (input.dim() - 2)
        return normal * self.weight.view(shape) + self.bias.view(shape)

    @torch.no_grad()
    def _update(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1).clamp_min(1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def synchronise_batchnorm(module: nn.Module) -> None:
    """Turn every BatchNorm inside ``module`` into a :class:`SyncedBatchNorm`, in place.

    Parameters, buffers and their names stay what they are, so checkpoints are not affected.
    """
    for child in module.modules():
        if type(child) in {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}:
            child.__class__ = SyncedBatchNorm


class CommonDropout(nn.Dropout):
    """A Dropout that draws the mask of all processes' windows and applies its own rows.

    The processes' generators must be in the same state.

    Attributes:
        windows: of a micro-batch, all processes together.
        rows: those of them that this process has.
    """

    windows: int
    rows: range

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop numbers of ``input`` [window, ...]; in eval mode return it as it is."""
        if not self.training:
            return input
        ones = input.new_ones(self.windows, *input.shape[1:])
        mask = functional.dropout(ones, self.p)
        return input * mask[self.rows.start : self.rows.stop]


def share_dropout(module: nn.Module, windows: int, ranks: Ranks) -> None:
    """Turn every Dropout inside ``module`` into a :class:`CommonDropout`, in place.

    Args:
        module: sees micro-batches.
        windows: of a micro-batch, all processes together.
        ranks: the processes that share it.
    """
    rows = share_of_process(windows, ranks.rank, ranks.world)
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.__class__ = CommonDropout
            child.__dict__.update(windows=windows, rows=rows)
