"""Which epochs are kept, which is the best, and when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import TrainConfig


@dataclass
class Selection:
    """What the epochs so far decide; a NaN loss counts as infinitely bad.

    Args:
        best_epoch, best_loss: the epoch with the least validation loss (the first of equals).
        kept: (loss, epoch) of the ``save_top_k`` best epochs, best first.
        bad_epochs: epochs since the best one.
        stop: whether training has ended.
        reason: why it has ended.
    """

    best_epoch: int = -1
    best_loss: float = math.inf
    kept: list[tuple[float, int]] = field(default_factory=list)
    bad_epochs: int = 0
    stop: bool = False
    reason: str = ""

    def update(self, epoch: int, loss: float, config: TrainConfig) -> None:
        """Take epoch number ``epoch`` (from 0), that ended with ``loss``, into account."""
        loss = math.inf if math.isnan(loss) else loss
        if loss < self.best_loss or self.best_epoch < 0:
            self.best_epoch, self.best_loss, self.bad_epochs = epoch, loss, 0
        else:
            self.bad_epochs += 1
        self.kept = sorted([*self.kept, (loss, epoch)])[: config.save_top_k]

    def settle(self, finished: int, config: TrainConfig) -> None:
        """Decide after ``finished`` epochs whether training ends here."""
        self.stop, self.reason = self._verdict(finished, config)

    def _verdict(self, finished: int, config: TrainConfig) -> tuple[bool, str]:
        if finished >= config.max_epochs:
            return True, f"max_epochs {config.max_epochs} reached"
        if finished >= config.min_epochs and self.bad_epochs >= config.patience:
            return True, f"no better val_loss for {self.bad_epochs} epochs"
        return False, ""

    def state(self) -> dict[str, Any]:
        """Return a JSON-like form for :meth:`restored`."""
        return {
            "best_epoch": self.best_epoch, "best_loss": self.best_loss,
            "kept": [list(item) for item in self.kept], "bad_epochs": self.bad_epochs,
        }  # fmt: skip

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Selection:
        """Return the selection that gave ``state``, with the question of stopping left open."""
        kept = [(float(loss), int(epoch)) for loss, epoch in state["kept"]]
        return cls(state["best_epoch"], state["best_loss"], kept, state["bad_epochs"])
