"""The training loop: epochs of steps, validation, decisions, and a state to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from lasaft.network.model import LaSAFT
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.windows.loader import Batch
from pipeline.training.loop.background import folder_faults
from pipeline.training.loop.checkpoints import Keeper, Publication
from pipeline.training.loop.decisions import Mean, Standing
from pipeline.training.loop.epoch_excerpts import Excerpts
from pipeline.training.loop.loss_network import loss_of
from pipeline.training.loop.optimiser import learning_rate
from pipeline.training.loop.outlet import Outlet
from pipeline.training.loop.process_data import TrainingData
from pipeline.training.loop.randomness import repeatable, seed_step
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.records import TrainResult
from pipeline.training.loop.reporter import SAMPLES, STEPS_PER_RECORD, Reporter
from pipeline.training.loop.step import NONE, Stepper, StepResult, Wishes
from pipeline.training.loop.validation import validate

OnEpoch = Callable[[int, dict[str, float]], None]


class Trainer:
    """Trains one network; everything that it knows can be saved and restored.

    Args:
        model: the network on the device of ``ranks``, with its first weights.
        data: this process's windows and tracks.
        folder: where state, journal and models go.
        provenance: the unchanging part of a checkpoint's record.
        on_epoch: called on every process after each epoch with its values.
        outlet: where reports and states go; by default into the folder.
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
        on_epoch: OnEpoch = lambda epoch, values: None,
        outlet: Outlet | None = None,
    ) -> None:
        self.config, self.train = config, config.train
        self.data, self.folder, self.ranks = data, folder, ranks
        self.provenance, self.on_epoch = provenance, on_epoch
        self.targets = self.train.target_names or config.model.sources
        self.val_loss = loss_of(self.train, self.train.val_loss, model)
        train_loss = loss_of(self.train, self.train.train_loss, model)
        self.stepper = Stepper(model.train(), train_loss, self.train, ranks)
        networks, self.output = {"model": model}, model
        if self.stepper.average is not None:
            # What is validated and published: BatchNorm's statistics go with the weights.
            self.output = self.stepper.average.model
            networks["average"] = self.output
        self.at = Standing()
        self.report = Reporter(config, folder, ranks, data, self.at)
        self.outlet = outlet or Outlet(folder)
        self._told = -math.inf  # when the last report was
        self._taken: list[tuple[Batch, float]] = []  # steps whose results nobody has read yet
        self.keeper = Keeper(
            config, folder, ranks,
            networks=networks, optimizer=self.stepper.optimizer, report=self.report,
            outlet=self.outlet,
        )  # fmt: skip
        self.timed_out = False
        self.validation_seconds = math.inf  # of the last one; nobody knows how long the first takes

    def run(self) -> TrainResult:
        """Train to the end, from the saved state if there is one; return what came out.

        Raises:
            StageError: too many steps without finite numbers, or a full disk.
        """
        with folder_faults(self.folder.root), repeatable(self.train.deterministic):
            whole = self.report.open(self._resume())
            try:
                with self.outlet:
                    if not self.ranks.agree(whole):
                        # The journal is shorter than the saved state says: save where it ends now.
                        self._save()
                    self._run()
            finally:
                self.report.close()
        return self._result()

    def _run(self) -> None:
        self._settle()
        while not (self.at.selection.stop or self.timed_out):
            self._train_epoch()
            if self.at.batch == self.data.steps_per_epoch:
                self._end_epoch()
            else:
                self._end_in_mid_epoch()
        self.report.record("best", self.at.best())

    def _train_epoch(self) -> None:
        """Take the steps that are left of the epoch, or fewer if the time is up."""
        if self.at.batch == self.data.steps_per_epoch:
            return
        meter = self.report.meter
        with self.data.batches(self.at.epoch, self.at.batch) as batches:
            start, waited = time.monotonic(), batches.wait_seconds
            for batch in batches:
                wishes = self._take_step(batch)
                now = time.monotonic()
                meter.step_seconds += now - start
                meter.wait_seconds += batches.wait_seconds - waited
                start, waited = now, batches.wait_seconds
                self.outlet.check()
                if wishes.stop:
                    return
                if wishes.save:
                    self._save()
                elif wishes.tell:
                    self.outlet.tell(self.report.standing("train", self._rate()))
                    self._told = time.monotonic()
                start = time.monotonic()
        assert self.at.batch == self.data.steps_per_epoch, f"an epoch of {self.at.batch} batches"

    def _take_step(self, batch: Batch) -> Wishes:
        at, taken = self.at, self._taken
        total = self.train.max_epochs * self.data.steps_per_epoch
        step = at.step + len(taken)
        rate = learning_rate(step, total, self.train) * at.plateau.factor
        seed_step(self.train.seed, step)
        read = (step + 1) % self.stepper.reads_every == 0
        read |= at.batch + len(taken) + 1 == self.data.steps_per_epoch
        taken.append((self.stepper.take(batch, rate, self._wishes() if read else NONE), rate))
        if not read:
            return NONE
        wishes = NONE
        for result, (its_batch, its_rate) in zip(self.stepper.results(), taken, strict=True):
            self._count(result, its_batch, its_rate)
            wishes = result.wishes
        taken.clear()
        self.timed_out = wishes.stop
        return wishes

    def _count(self, result: StepResult, batch: Batch, rate: float) -> None:
        at = self.at
        if result.applied:
            at.add_loss(result.loss)
            self.report.health.step(result, rate)
        else:
            self.report.health.skipped(
                result, batch, step=at.step, place=(at.epoch, at.batch),
                in_a_row=self.stepper.bad_in_a_row,
            )  # fmt: skip
        at.step, at.batch = at.step + 1, at.batch + 1
        if at.step % STEPS_PER_RECORD == 0:
            self.report.steps(at.recent.value, rate, result.gradient_norm)
            at.recent = Mean()

    def _wishes(self) -> Wishes:
        """Return what has to follow the next step; the first process's wishes count."""
        return Wishes(
            stop=self._time_is_up(),
            tell=time.monotonic() - self._told >= self.outlet.every_seconds,
            save=self.keeper.due(),
        )

    def _time_is_up(self) -> bool:
        hours, seconds = self.train.time_limit_hours, self.report.meter.seconds
        return hours is not None and seconds >= 3600 * hours

    def _save(self) -> None:
        self.keeper.save(self._progress(), self.report.standing("train", self._rate()))
        self._told = time.monotonic()

    def _end_epoch(self) -> None:
        """Validate, decide, publish, save: the next epoch can begin."""
        if self.ranks.agree(self.keeper.due(within=self.validation_seconds)):
            self._save()
        values = self._validate()
        publication = self._publication(values)
        reported = self.report.standing("epoch", self._rate()) | values
        self.at.next_epoch()
        self.keeper.save(self._progress(), reported, publication)
        self._settle()
        self.on_epoch(self.at.epoch - 1, values)

    def _end_in_mid_epoch(self) -> None:
        """Save a state that goes on from here; without any model yet, publish this one.

        The state knows nothing of that model: with more time, training goes on as if it had never
        been interrupted.
        """
        self._save()
        if self.at.selection.best_epoch < 0:
            publication = self._publication(self._validate())
            if publication is not None:
                self.keeper.publish(publication)

    def _validate(self) -> dict[str, float]:
        """Validate, take the epoch's decisions and return its values."""
        self.outlet.tell(self.report.standing("validate", self._rate()))
        began, every = time.monotonic(), self.train.sample_every_epochs
        sampled = every > 0 and (self.at.epoch + 1) % every == 0
        excerpts = Excerpts(self.config.model.sample_rate) if sampled else None
        tracks = self.data.validation_tracks()
        found = validate(
            self.output, self.val_loss, tracks, self.targets, self.ranks, listen=excerpts
        )
        self.at.decide(found, self.train, self.ranks)
        values = {"train/epoch_loss": self.at.whole.value, "valid/loss": found.loss}
        values |= {f"valid/{name}/SDR": value for name, value in found.sdr.items()}
        self.report.record("epoch", values | {"train/skipped_steps": self.stepper.bad_steps})
        if found.tracks:
            self.report.health.epoch(found.loss, self._rate())
        if excerpts is not None:
            self._write_excerpts(excerpts)
        self.validation_seconds = time.monotonic() - began
        self.report.speed(self.validation_seconds)
        return values

    def _write_excerpts(self, excerpts: Excerpts) -> None:
        name = f"{SAMPLES}/epoch={self.at.epoch:04d}"
        if excerpts.write(self.folder.training / name, f"epoch {self.at.epoch + 1}"):
            self.report.record("sample", {}, files=name)

    def _publication(self, values: dict[str, float]) -> Publication | None:
        """Return what there is to publish of this epoch, None if its model is not to be kept."""
        at = self.at
        self.report.energy.add_up(self.ranks)
        if not self.ranks.is_first or at.epoch not in at.kept:
            return None
        metrics = {name: value if math.isfinite(value) else None for name, value in values.items()}
        record = self.provenance | {"epoch": at.epoch, "step": at.step, "metrics": metrics}
        record |= {"seconds": round(self.report.meter.seconds, 1)} | self.report.energy.record()
        return Publication(record, best=at.selection.best_epoch == at.epoch, kept=at.kept)

    def _settle(self) -> None:
        self.at.selection.settle(self.at.epoch, self.train)

    def _progress(self) -> dict[str, Any]:
        parts = {"stepper": self.stepper.state(), "report": self.report.state()}
        return self.at.state() | parts

    def _resume(self) -> int:
        """Go on from the saved state, if there is one; return how much of the journal it counts."""
        saved = self.keeper.load()
        if saved is not None:
            self.at.restore(saved)
            self.stepper.restore(saved["stepper"])
            self.report.restore(saved["report"])
        self.keeper.recover(self.at.kept)
        return 0 if saved is None else saved["history"]

    def _rate(self) -> float:
        return self.stepper.optimizer.param_groups[0]["lr"]

    def _result(self) -> TrainResult:
        at, meter, skipped = self.at, self.report.meter, self.stepper.bad_steps
        reason, cut_short = at.selection.reason, self.timed_out and not at.selection.stop
        if cut_short:
            reason = f"time_limit_hours {self.train.time_limit_hours:g} reached"
        report = self.report
        notes = report.health.closing_notes(report.notes, meter.wait_share, skipped, at)
        return TrainResult(
            checkpoint=self.folder.checkpoint, **at.best_for_json(),
            epochs=at.epoch, steps=at.step, skipped_steps=skipped, seconds=meter.seconds,
            data_wait_share=meter.wait_share, reason=reason, notes=tuple(notes),
            timed_out=cut_short,
        )  # fmt: skip
