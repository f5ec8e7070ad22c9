"""The models that a training publishes: the best, and the best few."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lasaft.checkpoint import save_checkpoint
from lasaft.config import ModelConfig
from lasaft.files import recover_folder
from pipeline.config.folders import RunFolder


def epoch_folder(folder: RunFolder, epoch: int) -> Path:
    """Return where the model of ``epoch`` (from 0) lies if it is one of the best."""
    return folder.checkpoints / f"epoch={epoch:04d}"


def publish(
    folder: RunFolder,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    provenance: dict[str, Any],
    *,
    best: bool,
) -> None:
    """Write a network among the best epochs', and as the run's checkpoint if it is the ``best``."""
    targets = [epoch_folder(folder, provenance["epoch"])]
    for target in targets + ([folder.checkpoint] if best else []):
        # A training does not end because somebody exports, or edits, what it has published.
        save_checkpoint(target, weights, config, provenance, keep_others=True)


def prune(folder: RunFolder, kept: Iterable[int]) -> None:
    """Remove the models of epochs that are not among the ``kept`` ones any more."""
    names = {epoch_folder(folder, epoch).name for epoch in kept}
    for path in folder.checkpoints.glob("epoch=*"):
        if re.fullmatch(r"epoch=\d{4,}", path.name) and path.name not in names:
            shutil.rmtree(path)


def recover(folder: RunFolder, kept: Iterable[int]) -> None:
    """Mend what a crash in the middle of saving or publishing left behind."""
    state = folder.state
    for leftover in state.parent.glob(f".{state.name}.*.tmp-*"):
        leftover.unlink()
    recover_folder(folder.checkpoint)
    if folder.checkpoints.exists():
        for epoch in kept:
            recover_folder(epoch_folder(folder, epoch))
        prune(folder, kept)
