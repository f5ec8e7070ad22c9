"""The training loop: epochs of steps, validation, decisions, and a state to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from lasaft.model import LaSAFT
from pipeline.config import RunConfig
from pipeline.folders import RunFolder
from pipeline.loader import Batch, ValidationTrack
from pipeline.training.history import History, make_record
from pipeline.training.meter import Mean, Meter
from pipeline.training.optimisation import Plateau, learning_rate
from pipeline.training.publishing import prune, publish, recover
from pipeline.training.randomness import seed_step
from pipeline.training.ranks import Ranks
from pipeline.training.result import TrainResult
from pipeline.training.selection import Selection
from pipeline.training.state import load_common_state, restore_state, save_state, state_file
from pipeline.training.step import Stepper, loss_of
from pipeline.training.validation import Validation, validate

# A record for so many steps: enough for a smooth curve, few enough for a million steps.
STEPS_PER_RECORD = 10
WAIT_SHARE_LIMIT = 0.2


class Batches(Protocol):
    """The batches of the rest of an epoch; ``wait_seconds`` counts the time spent waiting."""

    wait_seconds: float

    def __iter__(self) -> Iterator[Batch]: ...


class TrainingData(Protocol):
    """What one process trains and validates on."""

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has."""
        ...

    def batches(self, epoch: int, first: int) -> AbstractContextManager[Batches]:
        """Return the batches of ``epoch`` (from 0), from number ``first`` on."""
        ...

    def validation_tracks(self) -> Iterator[tuple[int, ValidationTrack]]:
        """Yield this process's share of the tracks, each with its place among all of them."""
        ...


class Trainer:
    """Trains one network; everything that it knows can be saved and restored.

    Args:
        config: the run's settings.
        model: the network, on the device of ``ranks``, with its first weights.
        data: this process's windows and tracks.
        folder: where state, journal and models go.
        ranks: the processes that train together.
        provenance: the unchanging part of a checkpoint's record.
        on_epoch: called on every process after each epoch with its values.
    """

    def __init__(
        self,
        config: RunConfig,
        model: LaSAFT,
        data: TrainingData,
        folder: RunFolder,
        ranks: Ranks,
        *,
        provenance: dict[str, Any],
        on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, values: None,
    ) -> None:
        self.config, self.train = config, config.train
        self.model, self.data, self.folder, self.ranks = model, data, folder, ranks
        self.provenance, self.on_epoch = provenance, on_epoch
        self.targets = self.train.target_names or config.model.sources
        self.val_loss = loss_of(self.train, self.train.val_loss, model)
        self.stepper = Stepper(
            model, loss_of(self.train, self.train.train_loss, model), self.train, ranks
        )
        self.selection, self.plateau = Selection(), Plateau()
        self.meter = Meter(folder.training / "progress.json", writes=ranks.is_first)
        self.epoch = self.batch = self.step = 0
        self.recent, self.whole = Mean(), Mean()
        self.best_sdr: dict[str, float] = {}
        self._position = 0
        self._saved_at = time.monotonic()
        self._history: History | None = None

    def run(self) -> TrainResult:
        """Train to the end, from the saved state if there is one; return what came out.

        Raises:
            StageError: too many steps without finite numbers.
        """
        self._resume()
        if self.ranks.is_first:
            self._history = History(self.folder.metrics, self._position)
        try:
            self.model.train()
            self._settle()
            while not self.selection.stop:
                self._train_epoch()
                self._end_epoch()
            self._record("best", self._best())
        finally:
            if self._history is not None:
                self._history.close()
        return self._result()

    def _train_epoch(self) -> None:
        steps = self.data.steps_per_epoch
        if self.batch == steps:
            return
        with self.data.batches(self.epoch, self.batch) as batches:
            start, waited = time.monotonic(), batches.wait_seconds
            for batch in batches:
                self._take_step(batch)
                now = time.monotonic()
                self.meter.step_seconds += now - start
                self.meter.wait_seconds += batches.wait_seconds - waited
                start, waited = now, batches.wait_seconds
                self.meter.show(self._progress_line("train"))
                if now - self._saved_at >= self.train.mid_epoch_seconds:
                    self._save()
                    start = time.monotonic()
        assert self.batch == steps, f"{self.batch} batches in an epoch of {steps}"

    def _take_step(self, batch: Batch) -> None:
        total = self.train.max_epochs * self.data.steps_per_epoch
        rate = learning_rate(self.step, total, self.train) * self.plateau.factor
        seed_step(self.train.seed, self.step, self.ranks.rank)
        place = f"epoch {self.epoch}, batch {self.batch}"
        result = self.stepper.step(batch, rate, number=self.step, place=place)
        self.step += 1
        self.batch += 1
        if result.applied:
            self.recent.add(result.loss)
            self.whole.add(result.loss)
        if self.step % STEPS_PER_RECORD == 0:
            self._record("step", {
                "train/loss": self.recent.value, "train/lr": rate,
                "train/gradient_norm": result.gradient_norm,
            })  # fmt: skip
            self.recent = Mean()

    def _end_epoch(self) -> None:
        self.meter.show(self._progress_line("validate"), force=True)
        began = time.monotonic()
        tracks = self.data.validation_tracks()
        validation = validate(self.model, self.val_loss, tracks, self.targets, self.ranks)
        validation_seconds = time.monotonic() - began
        self._decide(validation)
        values = {"train/epoch_loss": self.whole.value, "valid/loss": validation.loss}
        values |= {f"valid/{name}/SDR": value for name, value in validation.sdr.items()}
        if self.selection.best_epoch == self.epoch:
            self.best_sdr = validation.sdr
        self._publish(values)
        self._record("epoch", values | {"train/skipped_steps": self.stepper.bad_steps})
        self._record("speed", {
            "speed/steps_per_second": self._steps_per_second(),
            "speed/data_wait_share": self.meter.wait_share,
            "speed/validation_seconds": validation_seconds,
            "speed/save_seconds": self.meter.save_seconds,
        })  # fmt: skip
        self.epoch, self.batch, self.whole = self.epoch + 1, 0, Mean()
        self._save()
        if self.ranks.is_first:
            prune(self.folder, [epoch for _, epoch in self.selection.kept])
        self._settle()
        self.on_epoch(self.epoch - 1, values)

    def _decide(self, validation: Validation) -> None:
        """Take the epoch's decisions on the first process; the others hear of them."""
        # Without validation tracks the training loss has to choose.
        loss = self.whole.value if not validation.tracks else validation.loss
        if self.ranks.is_first:
            self.selection.update(self.epoch, loss, self.train)
            if self.train.auto_lr_schedule:
                self.plateau.update(loss)
        decided = self.ranks.agree({
            "selection": self.selection.state(), "plateau": self.plateau.state(),
        })  # fmt: skip
        self.selection = Selection.restored(decided["selection"])
        self.plateau.restore(decided["plateau"])

    def _settle(self) -> None:
        self.selection.settle(self.epoch, self.train)

    def _publish(self, values: dict[str, float]) -> None:
        if not self.ranks.is_first or self.epoch not in {e for _, e in self.selection.kept}:
            return
        metrics = {name: value if math.isfinite(value) else None for name, value in values.items()}
        record = self.provenance | {"epoch": self.epoch, "step": self.step, "metrics": metrics}
        best = self.selection.best_epoch == self.epoch
        publish(self.folder, self.model, record, best=best)

    def _record(self, kind: str, values: dict[str, float]) -> None:
        if self._history is not None:
            record = make_record(
                kind, step=self.step, epoch=self.epoch, seconds=self.meter.seconds, values=values
            )
            self._history.append(record)

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        if self._history is None:
            return
        progress = {
            "epoch": self.epoch, "batch": self.batch, "step": self.step,
            "history": self._history.position(), "selection": self.selection.state(),
            "plateau": self.plateau.state(), "stepper": self.stepper.state(),
            "recent": self.recent.state(), "whole": self.whole.state(),
            "best_sdr": self.best_sdr, "meter": self.meter.state(),
        }  # fmt: skip
        save_state(state_file(self.folder), self.model, self.stepper.optimizer, progress)
        self.meter.save_seconds += time.monotonic() - self._saved_at
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        state = load_common_state(state_file(self.folder), self.ranks)
        if state is not None:
            restore_state(state, self.model, self.stepper.optimizer)
            saved = state.progress
            self.epoch, self.batch, self.step = saved["epoch"], saved["batch"], saved["step"]
            self._position, self.best_sdr = saved["history"], saved["best_sdr"]
            self.selection = Selection.restored(saved["selection"])
            self.plateau.restore(saved["plateau"])
            self.stepper.restore(saved["stepper"])
            self.recent, self.whole = Mean(*saved["recent"]), Mean(*saved["whole"])
            self.meter.restore(saved["meter"])
        if self.ranks.is_first:
            recover(self.folder, [epoch for _, epoch in self.selection.kept])

    def _steps_per_second(self) -> float:
        return self.step / self.meter.step_seconds if self.meter.step_seconds else 0.0

    def _progress_line(self, phase: str) -> dict[str, Any]:
        return {
            "phase": phase, "epoch": self.epoch, "step": self.step,
            "steps_per_epoch": self.data.steps_per_epoch,
            "loss": self.whole.value, "lr": self.stepper.optimizer.param_groups[0]["lr"],
            "steps_per_second": self._steps_per_second(),
            "data_wait_share": self.meter.wait_share,
        }  # fmt: skip

    def _result(self) -> TrainResult:
        best = self.selection.best_loss
        return TrainResult(
            checkpoint=self.folder.checkpoint,
            best_epoch=self.selection.best_epoch,
            best_val_loss=best if math.isfinite(best) else None,
            val_sdr={k: v if math.isfinite(v) else None for k, v in self.best_sdr.items()},
            epochs=self.epoch, steps=self.step, skipped_steps=self.stepper.bad_steps,
            seconds=self.meter.seconds, data_wait_share=self.meter.wait_share,
            reason=self.selection.reason, notes=tuple(self._notes()),
        )  # fmt: skip

    def _best(self) -> dict[str, float]:
        values = {"best/epoch": self.selection.best_epoch, "best/loss": self.selection.best_loss}
        return values | {f"best/{name}/SDR": value for name, value in self.best_sdr.items()}

    def _notes(self) -> Iterator[str]:
        if self.meter.wait_share > WAIT_SHARE_LIMIT:
            yield (
                f"{self.meter.wait_share:.0%} of the training time was spent waiting for data: "
                "a faster disk or more num_workers would help"
            )
        if self.stepper.bad_steps:
            yield f"{self.stepper.bad_steps} steps had no finite loss or gradient and were skipped"
        if self.ranks.device.type == "cpu" and torch.cuda.is_available():
            yield "there is a GPU and it was not used: gpus 1 trains on it"
        if not self.best_sdr:
            yield "there were no validation tracks: the training loss selected the model"
