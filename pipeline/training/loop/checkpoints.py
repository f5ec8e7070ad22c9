"""The checkpoints of a training: its state to go on from, its best models to use."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lasaft.checkpoint import save_checkpoint
from lasaft.files import recover_folder
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.background import folder_faults
from pipeline.training.loop.outlet import Outlet, Write
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.reporter import Reporter
from pipeline.training.loop.state_file import (
    TrainingState,
    capture_state,
    load_common_state,
    restore_state,
    write_state,
)
from pipeline.training.loop.timing import Meter

# While a node is leaving, so much training is lost at most, however long mid_epoch_seconds is.
_HURRIED_SECONDS = 5.0
_ASIDE = "aside"


@dataclass(frozen=True)
class Publication:
    """A model to be kept: its record, whether it is the best, and which epochs' models stay.

    Its weights are those of the network that it is published with, unless it has some.
    """

    record: dict[str, Any]
    best: bool
    kept: Sequence[int]
    weights: Mapping[str, Tensor] = field(default_factory=dict)


class Keeper:
    """Saves and restores a training; on all processes but the first it writes nothing.

    Args:
        networks: by name, what is saved; the last one is what is published.
        report: whose journal a saved state counts on.
        outlet: where states go.

    Attributes:
        aside: weights on the CPU that are saved beside the networks; they are never changed.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        ranks: Ranks,
        *,
        networks: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        report: Reporter,
        outlet: Outlet,
    ) -> None:
        self._config, self._folder, self._ranks = config, folder, ranks
        self._networks, self._optimizer, self._report = networks, optimizer, report
        self._outlet = outlet
        self.aside: Mapping[str, Tensor] = {}
        self._saved_at = time.monotonic()

    @property
    def _meter(self) -> Meter:
        return self._report.meter

    def due(self, within: float = 0) -> bool:
        """Whether a save in mid epoch is due in so many seconds; not while one is written."""
        waited = time.monotonic() - self._saved_at + within
        patience = self._config.train.mid_epoch_seconds
        if self._outlet.leaving:
            patience = min(patience, _HURRIED_SECONDS)
        return waited >= patience and not self._outlet.busy

    def save(
        self,
        progress: dict[str, Any],
        values: dict[str, Any],
        publication: Publication | None = None,
    ) -> None:
        """Copy the state as it is now; it is written while training goes on.

        Args:
            progress: everything but tensors and times, JSON-like.
            values: what is reported with the state.
            publication: of the network as it is now, if it is to be kept.
        """
        began = time.monotonic()
        write = self._writing(progress, publication) if self._ranks.is_first else None
        self._outlet.save(values, write)
        self._saved_at = time.monotonic()
        self._meter.save_seconds += self._saved_at - began

    def _writing(self, progress: dict[str, Any], publication: Publication | None) -> Write:
        """Copy the state, and return what writes it."""
        meter, position = self._meter.state(), self._report.position()
        state = self._capture(progress | {"meter": meter, "history": position})

        def write(file: Path) -> None:
            # In this order: whatever a saved state counts on is on the disk before it.
            with folder_faults(self._folder.root):
                self._outlet.right.require()
                if publication is not None:
                    self.publish(publication, state)
                self._report.sync()
                self._outlet.share()
                write_state(file, state)
                if publication is not None:
                    prune(self._folder, publication.kept)

        return write

    def _capture(self, progress: dict[str, Any]) -> TrainingState:
        state = capture_state(self._networks, self._optimizer, progress)
        aside = {f"{_ASIDE}/{name}": value for name, value in self.aside.items()}
        return replace(state, tensors=state.tensors | aside)

    def publish(self, publication: Publication, state: TrainingState | None = None) -> None:
        """Write a network among the best epochs', and as the run's checkpoint if it is the best.

        It is that of ``state``, or as it is now.
        """
        weights, record = publication.weights, publication.record
        if not weights:
            state = self._capture({}) if state is None else state
            weights = state.part(list(self._networks)[-1])
        targets = [epoch_folder(self._folder, record["epoch"])]
        for target in targets + ([self._folder.checkpoint] if publication.best else []):
            # A training does not end because somebody exports, or edits, what it has published.
            save_checkpoint(target, weights, self._config.model, record, keep_others=True)

    def load(self) -> dict[str, Any] | None:
        """Put the saved state back and return its ``progress``, None if there is none."""
        state = load_common_state(self._outlet.start(), self._ranks)
        if state is None:
            return None
        restore_state(state, self._networks, self._optimizer)
        self.aside = state.part(_ASIDE)
        self._meter.restore(state.progress["meter"])
        return state.progress

    def recover(self, kept: Sequence[int]) -> None:
        """Mend what a crash in the middle of saving or publishing left behind.

        ``kept`` are the epochs whose models count.
        """
        if not self._ranks.is_first:
            return
        state, folder = self._folder.state, self._folder
        for leftover in state.parent.glob(f".{state.name}.*.tmp-*"):
            leftover.unlink()
        recover_folder(folder.checkpoint)
        if folder.checkpoints.exists():
            for epoch in kept:
                recover_folder(epoch_folder(folder, epoch))
            prune(folder, kept)


def epoch_folder(folder: RunFolder, epoch: int) -> Path:
    """Return where the model of ``epoch`` (from 0) lies if it is one of the best."""
    return folder.checkpoints / f"epoch={epoch:04d}"


def prune(folder: RunFolder, kept: Iterable[int]) -> None:
    """Remove the models of epochs that are not among the ``kept`` ones any more."""
    names = {epoch_folder(folder, epoch).name for epoch in kept}
    for path in folder.checkpoints.glob("epoch=*"):
        if re.fullmatch(r"epoch=\d{4,}", path.name) and path.name not in names:
            shutil.rmtree(path)
