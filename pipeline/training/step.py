"""One optimiser step: micro-batches, precision, the mean over processes, clipping, bad numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lasaft.errors import StageError
from lasaft.losses import build_loss
from lasaft.model import LaSAFT
from pipeline.config import TrainConfig
from pipeline.loader import Batch
from pipeline.training.optimisation import build_optimizer, set_learning_rate
from pipeline.training.ranks import Ranks

# So many steps without an update, one after the other, end the training: fp16's loss scale needs
# about 16 to come down from 2**16 to 1, so 30 can only mean that it will not recover.
BAD_STEP_LIMIT = 30

_AUTOCAST = {"16": torch.float16, "bf16": torch.bfloat16, "32": None}

LossFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class LossNetwork(nn.Module):
    """The network with its loss behind it: what DistributedDataParallel wraps.

    Args:
        model: the network.
        loss: (estimate in the network's domain, target, mixture) -> scalar, in float32.
        precision: ``16`` and ``bf16`` run the network under autocast, the loss never.
    """

    def __init__(self, model: LaSAFT, loss: LossFunction, precision: str) -> None:
        super().__init__()
        self.model = model
        # In a list: a loss that is a module must not register the network a second time.
        self._loss = [loss]
        self._dtype = _AUTOCAST[precision]

    def forward(
        self, mixture: torch.Tensor, target: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of one micro-batch, a scalar."""
        with torch.autocast(mixture.device.type, self._dtype, enabled=self._dtype is not None):
            estimate = self.model.estimate(mixture, condition)
        return self._loss[0](estimate.float(), target, mixture)


@dataclass(frozen=True)
class StepResult:
    """What one step did: loss and gradient norm are those of all processes together."""

    loss: float
    gradient_norm: float
    applied: bool


class Stepper:
    """Takes optimiser steps for a network; the same mathematics for any number of processes.

    Args:
        model: the network, on the device of ``ranks``.
        loss: the training loss.
        config: precision, optimiser, clipping and accumulation.
        ranks: the processes that train together.
    """

    def __init__(
        self, model: LaSAFT, loss: LossFunction, config: TrainConfig, ranks: Ranks
    ) -> None:
        self.config, self.ranks = config, ranks
        self.optimizer = build_optimizer(config.optimizer, model.parameters(), config.lr)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "16")
        self.bad_steps = 0
        self.bad_in_a_row = 0
        self._parameters = list(model.parameters())
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        network = LossNetwork(model, loss, config.precision)
        self._network: nn.Module = network
        if ranks.world > 1:
            # find_unused_parameters: conditioning that the loss does not reach has no gradient.
            # It also fixes the order of the reduction from the first step on, without which a
            # resumed run of three or more processes could differ in the last bit.
            # Running statistics are shared before they are used (validation), not in every step.
            _ignore_buffers(network)
            self._network = DistributedDataParallel(
                network, find_unused_parameters=True, gradient_as_bucket_view=True
            )

    def step(self, batch: Batch, rate: float, *, number: int, place: str) -> StepResult:
        """Take one step on this process's part of a batch.

        Args:
            batch: its windows are split into ``accumulate_grad_batches`` equal parts.
            rate: the learning rate.
            number: number of the step, for messages.
            place: where the batch lies, for messages ("epoch 3, batch 7").

        Raises:
            StageError: too many steps in a row gave no finite loss or gradient.
        """
        set_learning_rate(self.optimizer, rate)
        _copy_all(self._kept, self._buffers)
        self.optimizer.zero_grad(set_to_none=True)
        loss = float(self.ranks.mean(self._backward(batch)))
        self.scaler.unscale_(self.optimizer)
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.gradient_clip_val is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.config.gradient_clip_val, norm)
        norm = float(norm)
        applied = math.isfinite(loss) and math.isfinite(norm)
        if applied:
            self.scaler.step(self.optimizer)
            self.bad_in_a_row = 0
        else:
            self._reject(loss, norm, number, place)
        self.scaler.update()
        return StepResult(loss, norm, applied)

    def _backward(self, batch: Batch) -> torch.Tensor:
        parts = self.config.accumulate_grad_batches
        device = self.ranks.device
        total = torch.zeros((), device=device)
        pieces = zip(
            batch.mixture.chunk(parts), batch.target.chunk(parts), batch.condition.chunk(parts),
            strict=True,
        )  # fmt: skip
        for index, piece in enumerate(pieces):
            with self._quiet(last=index == parts - 1):
                inputs = [part.to(device, non_blocking=True) for part in piece]
                loss = self._network(*inputs) / parts
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _quiet(self, *, last: bool) -> Any:
        """Let the processes add their gradients up in the last micro-batch only."""
        if last or not isinstance(self._network, DistributedDataParallel):
            return nullcontext()
        return self._network.no_sync()

    def _reject(self, loss: float, norm: float, number: int, place: str) -> None:
        # The forward pass has put the bad numbers into BatchNorm's running statistics.
        _copy_all(self._buffers, self._kept)
        self.bad_in_a_row += 1
        self.bad_steps += 1
        if self.bad_in_a_row >= BAD_STEP_LIMIT:
            raise StageError(
                f"training: loss {loss}, gradient norm {norm} at step {number} ({place}): "
                f"{self.bad_in_a_row} steps in a row without finite numbers; the last saved state "
                "is kept; a lower lr, gradient_clip_val or precision bf16 or 32 may help"
            )

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs beside the network and the optimiser."""
        return {
            "scaler": self.scaler.state_dict(),
            "bad_steps": self.bad_steps,
            "bad_in_a_row": self.bad_in_a_row,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.bad_steps, self.bad_in_a_row = state["bad_steps"], state["bad_in_a_row"]


def _copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy tensor by tensor, in one launch where the device can."""
    if targets:
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]


def _ignore_buffers(network: nn.Module) -> None:
    """Let DistributedDataParallel leave the buffers alone; its option for that was renamed."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        network, [name for name, _ in network.named_buffers()]
    )


def loss_of(train: TrainConfig, name: str, model: LaSAFT) -> LossFunction:
    """Return the loss called ``name`` with the settings of ``train``."""
    if name != "raw_and_spec":
        return build_loss(name, model)
    return build_loss(
        name,
        model,
        loss_raw_scale=train.loss_raw_scale,
        loss_raw_mode=train.loss_raw_mode,
        loss_spec_scale=train.loss_spec_scale,
        loss_spec_mode=train.loss_spec_mode,
    )
