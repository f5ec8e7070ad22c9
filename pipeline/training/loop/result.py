"""What a training ended with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a whole training, over all its interruptions.

    Args:
        checkpoint: folder of the best model.
        best_epoch: its epoch, from 0.
        best_val_loss: its validation loss; None if that was never a finite number.
        val_sdr: the SDR of each target over the validation tracks at that epoch, in dB.
        epochs, steps: how much was trained.
        skipped_steps: steps without an update, because loss or gradient was not finite.
        seconds: time in training and validation.
        data_wait_share: share of the time in training steps that was spent waiting for data.
        reason: why training ended.
        timed_out: it was cut short by time_limit_hours: with more time it goes on.
        notes: what a person should know, one sentence each.
    """

    checkpoint: Path
    best_epoch: int
    best_val_loss: float | None
    val_sdr: dict[str, float | None]
    epochs: int
    steps: int
    skipped_steps: int
    seconds: float
    data_wait_share: float
    reason: str
    notes: tuple[str, ...] = ()
    timed_out: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-like form."""
        return asdict(self) | {"checkpoint": str(self.checkpoint), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainResult:
        """Return the result that :meth:`to_json` wrote."""
        parts = value | {"checkpoint": Path(value["checkpoint"]), "notes": tuple(value["notes"])}
        return cls(**parts)
