"""What the epochs decide: which is the best, which are kept, when training stops."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config import TrainConfig
from pipeline.training.loop.optimiser import Plateau
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.validation import Validation


@dataclass(frozen=True)
class Ended:
    """How an epoch ended, JSON-like: its records and its model tell it, whenever they are written.

    Attributes:
        epoch: from 0.
        step, seconds: taken by then.
        loss: mean of the training loss over the epoch.
        rate: the learning rate of its last step.
        skipped: steps without an update by then.
        energy: what a checkpoint says of the energy taken by then.
    """

    epoch: int
    step: int
    seconds: float
    loss: float
    rate: float
    skipped: int
    energy: dict[str, Any]


class Standing:
    """A training's counters, means and decisions.

    Attributes:
        epoch, step: from 0.
        batch: within the epoch, from 0.
        selection, plateau: what the epochs so far decide.
        recent, whole: mean training loss since the last record, and of the epoch.
        best_sdr: the SDR of each target at the best epoch, in dB.
    """

    def __init__(self) -> None:
        self.epoch = self.batch = self.step = 0
        self.selection, self.plateau = Selection(), Plateau()
        self.recent, self.whole = Mean(), Mean()
        self.best_sdr: dict[str, float] = {}

    def add_loss(self, loss: float) -> None:
        """Take the loss of one more step in."""
        self.recent.add(loss)
        self.whole.add(loss)

    def decide(
        self, ended: Ended, validation: Validation, train: TrainConfig, ranks: Ranks
    ) -> None:
        """Take an epoch's decisions on the first process; the others hear of them."""
        # Without validation tracks the training loss has to choose.
        loss = validation.loss if validation.tracks else ended.loss
        if ranks.is_first:
            self.selection.update(ended.epoch, loss, train)
            if train.auto_lr_schedule:
                self.plateau.update(loss)
        decided = ranks.agree({
            "selection": self.selection.state(), "plateau": self.plateau.state(),
        })  # fmt: skip
        stop, reason = self.selection.stop, self.selection.reason
        self.selection = replace(
            Selection.restored(decided["selection"]), stop=stop, reason=reason
        )  # whether it stops is settled at the ends of epochs
        self.plateau.restore(decided["plateau"])
        if self.selection.best_epoch == ended.epoch:
            self.best_sdr = validation.sdr

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.batch, self.whole = self.epoch + 1, 0, Mean()

    @property
    def kept(self) -> list[int]:
        """The epochs whose models are kept, best first."""
        return [epoch for _, epoch in self.selection.kept]

    def best(self) -> dict[str, float]:
        """Return the best epoch, its loss and its scores, as the journal names them."""
        values = {"best/epoch": self.selection.best_epoch, "best/loss": self.selection.best_loss}
        return values | {f"best/{name}/SDR": value for name, value in self.best_sdr.items()}

    def best_for_json(self) -> dict[str, Any]:
        """Return loss and scores of the best epoch, None where one is no finite number."""
        loss, sdr = self.selection.best_loss, self.best_sdr
        return {
            "best_epoch": self.selection.best_epoch,
            "best_val_loss": loss if math.isfinite(loss) else None,
            "val_sdr": {k: v if math.isfinite(v) else None for k, v in sdr.items()},
        }

    def state(self) -> dict[str, Any]:
        """Return a JSON-like form for :meth:`restore`."""
        return {
            "epoch": self.epoch, "batch": self.batch, "step": self.step,
            "selection": self.selection.state(), "plateau": self.plateau.state(),
            "recent": self.recent.state(), "whole": self.whole.state(),
            "best_sdr": self.best_sdr,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.selection = Selection.restored(state["selection"])
        self.plateau.restore(state["plateau"])
        self.recent, self.whole = Mean(*state["recent"]), Mean(*state["whole"])
        self.best_sdr = state["best_sdr"]


@dataclass
class Selection:
    """What the epochs so far decide; a NaN loss counts as infinitely bad."""

    best_epoch: int = -1  # the epoch with the least validation loss (the first of equals)
    best_loss: float = math.inf
    # (loss, epoch) of the ``save_top_k`` best epochs, best first.
    kept: list[tuple[float, int]] = field(default_factory=list)
    bad_epochs: int = 0  # since the last one that was better by more than ``min_delta``
    mark: float = math.inf  # its loss
    stop: bool = False  # whether training has ended
    reason: str = ""  # why it has ended

    def update(self, epoch: int, loss: float, config: TrainConfig) -> None:
        """Take epoch number ``epoch`` (from 0), that ended with ``loss``, into account."""
        loss = math.inf if math.isnan(loss) else loss
        first = self.best_epoch < 0
        if loss < self.best_loss or first:
            self.best_epoch, self.best_loss = epoch, loss
        if loss < self.mark - config.min_delta or first:
            self.mark, self.bad_epochs = loss, 0
        else:
            self.bad_epochs += 1
        self.kept = sorted([*self.kept, (loss, epoch)])[: config.save_top_k]

    def settle(self, finished: int, config: TrainConfig) -> None:
        """Decide after ``finished`` epochs whether training ends here."""
        self.reason = ""
        if finished >= config.max_epochs:
            self.reason = f"max_epochs {config.max_epochs} reached"
        elif finished >= config.min_epochs and self.bad_epochs >= config.patience:
            self.reason = f"no better val_loss for {self.bad_epochs} epochs"
        self.stop = bool(self.reason)

    def state(self) -> dict[str, Any]:
        """Return a JSON-like form for :meth:`restored`."""
        return {
            "best_epoch": self.best_epoch, "best_loss": self.best_loss,
            "kept": [list(item) for item in self.kept], "bad_epochs": self.bad_epochs,
            "mark": self.mark,
        }  # fmt: skip

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Selection:
        """Return the selection that gave ``state``, with the question of stopping left open."""
        kept = [(float(loss), int(epoch)) for loss, epoch in state["kept"]]
        best = state["best_loss"]
        # A state of before has no mark: every better epoch counted.
        mark = state.get("mark", best)
        return cls(state["best_epoch"], best, kept, state["bad_epochs"], mark)


class Mean:
    """A running mean whose two numbers can be saved."""

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self.total, self.count = total, count

    def add(self, value: float) -> None:
        """Take one more value in."""
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        """The mean, NaN of nothing."""
        return self.total / self.count if self.count else math.nan

    def state(self) -> tuple[float, int]:
        """Return what the constructor needs."""
        return self.total, self.count
