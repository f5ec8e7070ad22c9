"""One optimiser step: micro-batches, the mean over processes, clipping, bad numbers, averaging."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lasaft.network.model import LaSAFT
from pipeline.config import TrainConfig
from pipeline.data.windows.loader import Batch
from pipeline.data.windows.shares import share_of_process
from pipeline.training.loop.averaging import WeightAverage
from pipeline.training.loop.loss_network import LossFunction, build_network, compiling
from pipeline.training.loop.optimiser import build_optimizer, set_learning_rate
from pipeline.training.loop.ranks import Ranks


class Wishes(NamedTuple):
    """What the first process wants all of them to do after the step."""

    stop: bool = False  # the time is up
    tell: bool = False  # a report is due
    save: bool = False  # a state is due


NONE = Wishes()
# Divides the steps of a record in the journal.
READS_EVERY = 5


@dataclass(frozen=True)
class StepResult:
    """What one step did: loss and gradient norm are those of all processes together.

    ``wishes`` are the first process's; ``applied`` is False if the step was skipped.
    """

    loss: float
    gradient_norm: float
    applied: bool
    wishes: Wishes = NONE


class Stepper:
    """Takes optimiser steps for a network; the same mathematics for any number of processes.

    Args:
        model: the network, on the device of ``ranks``.
        config: precision, optimiser, clipping, accumulation, averaging.
    """

    def __init__(
        self, model: LaSAFT, loss: LossFunction, config: TrainConfig, ranks: Ranks
    ) -> None:
        self.config, self.ranks = config, ranks
        self.optimizer = build_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "16")
        self.average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
        self.bad_steps = 0
        self.bad_in_a_row = 0
        fused = self.optimizer.defaults.get("fused") and self.average is None
        # So many steps follow each other before the host waits for what they did.
        self.reads_every = READS_EVERY if fused else 1
        self._found: list[torch.Tensor] = []  # of the steps since then
        self._parameters = list(model.parameters())
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._network = build_network(model, loss, config, ranks)
        windows = config.batch_size // config.accumulate_grad_batches
        share = share_of_process(windows, ranks.rank, ranks.world)
        # The mean over processes counts all of them alike: this makes it the mean over windows.
        self._weight = len(share) * ranks.world / windows

    def step(self, batch: Batch, rate: float, wishes: Wishes = NONE) -> StepResult:
        """Take one step as :meth:`take` does, and return what it did."""
        self.take(batch, rate, wishes)
        (result,) = self.results()
        return result

    def take(self, batch: Batch, rate: float, wishes: Wishes = NONE) -> Batch:
        """Take one step on this process's part of a batch; return that on this process's device.

        Args:
            batch: its windows are split into ``accumulate_grad_batches`` equal parts.
            rate: the learning rate.
            wishes: of this process. All learn of the first one's with the loss, so that they
                cost no message of their own.
        """
        set_learning_rate(self.optimizer, rate)
        # Where it came from may be filled again when the next batch is asked for.
        parts = (batch.mixture, batch.target, batch.condition)
        batch = Batch(*(part.to(self.ranks.device, non_blocking=True) for part in parts))
        kept = self._statistics()
        self.optimizer.zero_grad(set_to_none=True)
        with compiling(self.config.compile) if self.config.compile else nullcontext():
            loss = self._backward(batch)
        wished = wishes if self.ranks.is_first else NONE
        said = torch.stack([loss, *(torch.full_like(loss, float(wish)) for wish in wished)])
        means = self.ranks.mean(said)
        found = torch.cat([self._clip().to(means).view(1), means])
        good = found[:2].isfinite().all()
        if self.reads_every > 1:
            # The device decides. Fused optimisers read whether to do anything, as from a scaler.
            vars(self.optimizer).update(found_inf=(~good).float(), grad_scale=None)
            self.optimizer.step()
            self._set_statistics(torch.where(good, self._statistics(), kept))
        elif good:
            self.scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update()
        else:
            # The forward pass has put the bad numbers into BatchNorm's running statistics.
            self._set_statistics(kept)
        self.scaler.update()
        self._found.append(found)
        return batch

    def results(self) -> Iterator[StepResult]:
        """Wait for the steps taken since the last call, and yield what each did."""
        found, self._found = torch.stack(self._found).tolist(), []
        for norm, loss, *wished in found:
            applied = math.isfinite(loss) and math.isfinite(norm)
            self.bad_in_a_row = 0 if applied else self.bad_in_a_row + 1
            self.bad_steps += not applied
            yield StepResult(loss, norm, applied, Wishes(*(mean > 0 for mean in wished)))

    def _statistics(self) -> torch.Tensor:
        """Return a copy of all that BatchNorm keeps of batches, in one tensor."""
        return torch.cat([buffer.flatten() for buffer in self._buffers])

    def _set_statistics(self, values: torch.Tensor) -> None:
        parts = values.split([buffer.numel() for buffer in self._buffers])
        shaped = [part.view_as(own) for part, own in zip(parts, self._buffers, strict=True)]
        torch._foreach_copy_(self._buffers, shaped)  # pyright: ignore[reportPrivateImportUsage]

    def _backward(self, batch: Batch) -> torch.Tensor:
        parts = self.config.accumulate_grad_batches
        total = torch.zeros((), device=self.ranks.device)
        tensors = (batch.mixture, batch.target, batch.condition)
        pieces = zip(*(tensor.chunk(parts) for tensor in tensors), strict=True)
        # CUDA graphs may write over what the last step left, and over nothing of this one.
        if self.config.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        for index, piece in enumerate(pieces):
            with self._quiet(last=index == parts - 1):
                loss = self._network(*piece) * self._weight / parts
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _clip(self) -> torch.Tensor:
        """Return the norm of the true gradient, and limit it: the loss scale is taken out first."""
        self.scaler.unscale_(self.optimizer)
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.gradient_clip_val is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.config.gradient_clip_val, norm)
        return norm

    def _quiet(self, *, last: bool) -> Any:
        """Let the processes add their gradients up in the last micro-batch only."""
        if last or not isinstance(self._network, DistributedDataParallel):
            return nullcontext()
        return self._network.no_sync()

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs beside the networks and the optimiser."""
        return {
            "scaler": self.scaler.state_dict(),
            "bad_steps": self.bad_steps,
            "bad_in_a_row": self.bad_in_a_row,
            "averaged_steps": 0 if self.average is None else self.average.updates,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.bad_steps, self.bad_in_a_row = state["bad_steps"], state["bad_in_a_row"]
        if self.average is not None:
            self.average.updates = state["averaged_steps"]
