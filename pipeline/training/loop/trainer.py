"""The training loop: epochs of steps, validation, decisions, and a state to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from lasaft.files import publish_folder
from lasaft.network.model import LaSAFT
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.windows.loader import Batch
from pipeline.training.loop.background import folder_faults
from pipeline.training.loop.checkpoints import Keeper, Publication, prune
from pipeline.training.loop.decisions import Ended, Mean, Standing
from pipeline.training.loop.loss_network import loss_of
from pipeline.training.loop.optimiser import learning_rate
from pipeline.training.loop.outlet import Outlet
from pipeline.training.loop.process_data import TrainingData
from pipeline.training.loop.randomness import repeatable, seed_step
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.records import TrainResult
from pipeline.training.loop.reporter import SAMPLES, STEPS_PER_RECORD, Reporter
from pipeline.training.loop.step import NONE, Stepper, StepResult, Wishes
from pipeline.training.loop.validating import Beside, Found, Validated, examine

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
        self.beside = Beside(
            config, data, ranks, keeper=self.keeper, outlet=self.outlet, report=self.report
        )
        self.timed_out = False
        # That the last validation held training up; nobody knows how long the first one does.
        self.validation_seconds = math.inf

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
                self._end()
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
                self._save()

    def _end(self) -> None:
        """Decide on the epoch that is still being validated; without any model, publish this one.

        No state knows of it: with more epochs, or more time, training goes on as if it had never
        ended.
        """
        began = time.monotonic()
        pending = due = self.beside.take()
        if due is None and self.at.selection.best_epoch < 0:
            due = Validated(self._ended(), self._examine())
        self.validation_seconds = time.monotonic() - began
        values, publication = self._decide(due)
        if publication is not None:
            self.outlet.right.require()
            self.keeper.publish(publication)
            prune(self.folder, publication.kept)
        if pending is not None:
            self.outlet.tell(self.report.standing("epoch", self._rate()) | values)
            self.on_epoch(pending.ended.epoch, values)
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
        due = self._validate()
        values, publication = self._decide(due)
        reported = self.report.standing("epoch", self._rate()) | values
        self.at.next_epoch()
        self.keeper.save(self._progress(), reported, publication)
        self._settle()
        if due is not None:
            self.on_epoch(due.ended.epoch, values)

    def _validate(self) -> Validated | None:
        """Return the epoch that is decided on now: this one, or beside it the one before."""
        self.outlet.tell(self.report.standing("validate", self._rate()))
        began = time.monotonic()
        if self.train.validation == "inline":
            found = self._examine()
            due = Validated(self._ended(), found)
        else:
            due = self.beside.take()
            self.beside.begin(self._ended(), self.output)
        self.validation_seconds = time.monotonic() - began
        return due

    def _examine(self) -> Found:
        """Validate the network as it is now."""
        tracks = self.data.validation_tracks()
        return examine(self.config, self.output, tracks, self.ranks, self.at.epoch)

    def _ended(self) -> Ended:
        """Return how the epoch ends, or ended early."""
        self.report.energy.add_up(self.ranks)
        return Ended(
            self.at.epoch, self.at.step, self.report.meter.seconds, self.at.whole.value,
            self._rate(), self.stepper.bad_steps, self.report.energy.record(),
        )  # fmt: skip

    def _decide(self, due: Validated | None) -> tuple[dict[str, float], Publication | None]:
        """Take an epoch's decisions; return its values, and what is to be published of it."""
        if due is None:
            return {}, None
        ended, found = due.ended, due.found.validation
        self.at.decide(ended, found, self.train, self.ranks)
        values = {"train/epoch_loss": ended.loss, "valid/loss": found.loss}
        values |= {f"valid/{name}/SDR": value for name, value in found.sdr.items()}
        skipped = {"train/skipped_steps": ended.skipped}
        self.report.record("epoch", values | skipped, ended=ended)
        if found.tracks:
            self.report.health.epoch(found.loss, ended.rate)
        if due.found.excerpts:
            self._write_excerpts(due)
        self.report.speed(self.validation_seconds)
        return values, self._publication(due, values)

    def _write_excerpts(self, due: Validated) -> None:
        name = f"{SAMPLES}/epoch={due.ended.epoch:04d}"
        with publish_folder(self.folder.training / name) as fresh:
            for file, content in due.found.excerpts.items():
                (fresh / file).write_bytes(content)
        self.report.record("sample", {}, ended=due.ended, files=name)

    def _publication(self, due: Validated, values: dict[str, float]) -> Publication | None:
        """Return what there is to publish of an epoch, None if its model is not to be kept."""
        at, ended = self.at, due.ended
        if not self.ranks.is_first or ended.epoch not in at.kept:
            return None
        metrics = {name: value if math.isfinite(value) else None for name, value in values.items()}
        record = self.provenance | {"epoch": ended.epoch, "step": ended.step, "metrics": metrics}
        record |= {"seconds": round(ended.seconds, 1)} | ended.energy
        best = at.selection.best_epoch == ended.epoch
        return Publication(record, best, at.kept, due.weights)

    def _settle(self) -> None:
        self.at.selection.settle(self.at.epoch, self.train)

    def _progress(self) -> dict[str, Any]:
        parts = {"stepper": self.stepper.state(), "report": self.report.state()}
        return self.at.state() | parts | self.beside.state()

    def _resume(self) -> int:
        """Go on from the saved state, if there is one; return how much of the journal it counts."""
        saved = self.keeper.load()
        if saved is not None:
            self.at.restore(saved)
            self.stepper.restore(saved["stepper"])
            self.report.restore(saved["report"])
            self.beside.restore(saved)
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
