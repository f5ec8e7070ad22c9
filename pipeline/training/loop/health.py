"""What a person should know of a training that goes on: each fault is said once, plainly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lasaft.errors import StageError
from pipeline.config import TrainConfig
from pipeline.data.windows.loader import Batch
from pipeline.data.windows.shares import rows_of_process
from pipeline.training.loop.decisions import Standing
from pipeline.training.loop.process_data import TrainingData
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.step import StepResult

# So many steps without an update, one after the other, end the training: fp16's loss scale needs
# about 16 to come down from 2**16 to 1, so 30 can only mean that it will not recover.
BAD_STEP_LIMIT = 30
# Fewer are nothing to speak of where only the scaled gradient overflows; later torch tries twice
# the scale after every 2000 good steps.
_SCALE_STEPS = 16
_SCALE_TRIED_EVERY = 2000
WAIT_SHARE_LIMIT = 0.2
# The first batches wait for files that nobody has read yet.
_SECONDS_BEFORE_WAIT_COUNTS = 30.0
_CONSTANT_STEPS = 100
_CONSTANT_EPOCHS = 3
# Float32 sums of equal numbers differ by less.
_CONSTANT = 1e-6

# What is found at every start, and need not be true where training goes on.
OF_THE_MACHINE = ("gpu", "precision")

Tell = Callable[[str, str], None]


class Constancy:
    """Counts how often a number came again."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._last, self._times = math.nan, 1

    def add(self, value: float) -> bool:
        """Take one more number; return whether it came ``limit`` times in a row."""
        same = abs(value - self._last) <= _CONSTANT * abs(self._last)
        self._times = self._times + 1 if same else 1
        self._last = value
        return self._times >= self.limit

    def state(self) -> list[float]:
        """Return a JSON-like form for :meth:`restore`."""
        return [self._last, self._times]

    def restore(self, state: list[float]) -> None:
        """Go on from ``state``."""
        self._last, self._times = state[0], int(state[1])


class Health:
    """Looks at what training does and tells what is wrong with it.

    Args:
        tell: gets the kind of a fault and a sentence; called on the first process alone.
        data: knows where windows come from.
        train: precision, and how a batch is divided.
    """

    def __init__(self, tell: Tell, data: TrainingData, ranks: Ranks, train: TrainConfig) -> None:
        self._tell, self._data, self._ranks, self._train = tell, data, ranks, train
        self._steps, self._epochs = Constancy(_CONSTANT_STEPS), Constancy(_CONSTANT_EPOCHS)

    def state(self) -> dict[str, Any]:
        """Return a JSON-like form for :meth:`restore`."""
        return {"steps": self._steps.state(), "epochs": self._epochs.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._steps.restore(state["steps"])
        self._epochs.restore(state["epochs"])

    def start(self) -> None:
        """Look at where training runs."""
        if self._ranks.device.type == "cuda":
            return
        if torch.cuda.is_available():
            self._tell("gpu", "there is a GPU and it is not used: gpus 1 trains on it")
        if self._train.precision == "16":
            self._tell(
                "precision",
                "precision 16 on a CPU is exact and slow (measured: 11 times the time of 32, which "
                "is itself twice that of bf16); it is meant for GPUs",
            )

    def step(self, result: StepResult, rate: float) -> None:
        """Look at a step that was applied."""
        if self._steps.add(result.loss):
            self._tell(
                "constant loss",
                f"the training loss has been {result.loss:.6g} for {_CONSTANT_STEPS} steps: "
                f"nothing is learnt (lr {rate:.3g}, gradient norm {result.gradient_norm:.3g})",
            )

    def epoch(self, loss: float, rate: float) -> None:
        """Look at the loss that an epoch ended with."""
        if not math.isfinite(loss):
            self._tell(
                "val_loss",
                f"the validation loss is {loss}: the network gives no finite sound, and a model "
                "of this epoch is of no use; a lower lr or gradient_clip_val may help",
            )
        if self._epochs.add(loss):
            self._tell(
                "constant val_loss",
                f"the validation loss has been {loss:.6g} for {_CONSTANT_EPOCHS} epochs: nothing "
                f"is learnt (lr {rate:.3g})",
            )

    def waiting(self, seconds: float, share: float) -> None:
        """Look at the time that went into waiting for data."""
        if seconds >= _SECONDS_BEFORE_WAIT_COUNTS and share > WAIT_SHARE_LIMIT:
            self._tell("data wait", wait_note(share))

    def skipped(
        self, result: StepResult, batch: Batch, *, step: int, place: tuple[int, int], in_a_row: int
    ) -> None:
        """Say what was wrong with a step, on every process at once.

        Args:
            batch: this process's part of it.
            place: epoch, and the batch's number in it.
            in_a_row: how many steps were skipped without a good one between them.

        Raises:
            StageError: too many steps in a row gave no finite loss or gradient.
        """
        size, world = self._train.batch_size, self._ranks.world
        bad = sorted(
            rows_of_process(size, self._train.accumulate_grad_batches, rank, world)[row]
            for rank, rows in enumerate(self._ranks.gather(_not_finite(batch)))
            for row in rows
        )
        what = (
            f"loss {result.loss}, gradient norm {result.gradient_norm} at step {step} "
            f"(epoch {place[0]}, batch {place[1]})"
        )
        windows = bad or range(size)
        origin = "windows with bad numbers: " if bad else "its windows hold good numbers: "
        origin += self._data.describe(*place, windows)
        if in_a_row >= BAD_STEP_LIMIT:
            raise StageError(
                f"training: {what}: {in_a_row} steps in a row without finite numbers; the last "
                "saved state is kept; a lower lr, gradient_clip_val or precision bf16 or 32 may "
                f"help; {origin}"
            )
        scale_is_sought = self._train.precision == "16" and math.isfinite(result.loss)
        if not scale_is_sought or in_a_row > _SCALE_STEPS:
            self._tell("bad step", f"{what}: the step is skipped; {origin}")

    def closing_notes(
        self, said: Sequence[tuple[str, str]], wait_share: float, bad_steps: int, at: Standing
    ) -> Iterator[str]:
        """Yield what to say at the end: what was said on the way, in the light of the whole."""
        if wait_share > WAIT_SHARE_LIMIT:
            yield wait_note(wait_share)
        if bad_steps:
            tried = _SCALE_STEPS + at.step // _SCALE_TRIED_EVERY
            sought = self._train.precision == "16" and bad_steps <= tried
            normal = " (precision 16 takes some to find its scale)" if sought else ""
            yield f"{bad_steps} steps had no finite loss or gradient and were skipped{normal}"
        yield from (text for kind, text in said if kind not in ("data wait", "bad step"))
        if not at.best_sdr:
            yield "there were no validation tracks: the training loss selected the model"


def _not_finite(batch: Batch) -> list[int]:
    """Return the rows of a batch that hold NaN or infinity."""
    good = [part.flatten(1).isfinite().all(1) for part in (batch.mixture, batch.target)]
    return (~(good[0] & good[1])).nonzero().flatten().tolist()


def wait_note(share: float) -> str:
    """Say that much of the time was spent waiting for data."""
    return (
        f"{share:.0%} of the training time was spent waiting for data: a faster disk or more "
        "num_workers would help"
    )
