"""Optimisers by name, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pipeline.config import TrainConfig
from pipeline.config.train import OPTIMIZER_OPTIONS, PLATEAU_PATIENCE

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}

_FUSED, FUSED_ON = ("adam", "adamw", "sgd"), ("cuda",)

# The reference's ReduceLROnPlateau: its factor, torch's threshold.
PLATEAU_FACTOR = 0.5
PLATEAU_THRESHOLD = 1e-4


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of ``model``; what no option says is torch's default."""
    name, parameters = train.optimizer, list(model.parameters())
    values = {"betas": train.betas, "momentum": train.momentum}
    given: dict[str, Any] = {option: values[option] for option in OPTIMIZER_OPTIONS[name]}
    # One launch for all parameters, where torch has that: the same steps but for rounding.
    if name in _FUSED and parameters[0].device.type in FUSED_ON:
        given["fused"] = True
    groups: Any = parameters
    if train.weight_decay is not None:
        given["weight_decay"] = train.weight_decay
        groups = [{"params": decayed(model)}]
        chosen = set(groups[0]["params"])
        rest = [one for one in parameters if one not in chosen]
        groups.append({"params": rest, "weight_decay": 0.0})
    return _OPTIMIZERS[name](groups, lr=train.lr, **given)  # pyright: ignore[reportCallIssue]


def decayed(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that weight_decay pulls: matrices and kernels, but no embedding."""
    return [
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        # weight_norm keeps the lengths of a matrix's rows as original0.
        if parameter.dim() > 1 and name != "original0" and not isinstance(module, nn.Embedding)
    ]


class Plateau:
    """Halve a factor when a loss has not become better for ``PLATEAU_PATIENCE`` epochs.

    The same rule as ``torch.optim.lr_scheduler.ReduceLROnPlateau`` (relative threshold), but as
    a factor of the learning rate, so that warm-up and cosine can be multiplied with it.
    """

    def __init__(self, patience: int = PLATEAU_PATIENCE) -> None:
        self.patience = patience
        self.factor = 1.0
        self.best = math.inf
        self.bad_epochs = 0

    def update(self, loss: float) -> None:
        """Count one more epoch that ended with ``loss``."""
        # abs(): losses such as the negative SDR are below zero, where torch's form turns round.
        margin = PLATEAU_THRESHOLD * abs(self.best) if math.isfinite(self.best) else 0.0
        if loss < self.best - margin:
            self.best, self.bad_epochs = loss, 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.factor *= PLATEAU_FACTOR
            self.bad_epochs = 0

    def state(self) -> dict[str, float]:
        """Return what :meth:`restore` needs."""
        return {"factor": self.factor, "best": self.best, "bad_epochs": self.bad_epochs}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from ``state``."""
        self.factor, self.best = state["factor"], state["best"]
        self.bad_epochs = int(state["bad_epochs"])


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step before the plateau's factor.

    Args:
        step: number of the step, from 0.
        total_steps: steps up to the end of ``max_epochs``.
        config: ``lr``, ``warmup_steps`` and ``lr_schedule`` are used.
    """
    rate = config.lr
    if step < config.warmup_steps:
        return rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "cosine":
        span = max(1, total_steps - config.warmup_steps)
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, (step - config.warmup_steps) / span)))
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step use ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate
