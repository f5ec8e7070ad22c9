"""The network that a training begins with: drawn from the seed, or taken from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lasaft.authors.importing import read_authors_network
from lasaft.checkpoint import check_fits, load_checkpoint
from lasaft.config import ModelConfig
from lasaft.errors import CheckpointError
from lasaft.idle_options import without_effect
from lasaft.network.model import LaSAFT
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.randomness import seed_weights
from pipeline.training.loop.states import newest_state
from pipeline.training.loop.synchronised_layers import synchronise_batchnorm


def new_model(config: RunConfig, device: torch.device) -> LaSAFT:
    """Return the network with its first weights: from the seed, or from a checkpoint.

    A training that goes on has weights of its own, and needs that checkpoint no more.

    Raises:
        CheckpointError: ``resume_from_checkpoint`` cannot be read, or holds another network.
    """
    seed_weights(config.train.seed)
    model = LaSAFT(config.model)
    begun = newest_state(RunFolder.of(config)) is not None
    if config.train.resume_from_checkpoint is not None and not begun:
        weights = starting_weights(config.train.resume_from_checkpoint, config.model)
        model.load_state_dict(weights)
    model = model.to(device)
    if config.train.sync_batchnorm and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif config.train.sync_batchnorm:
        synchronise_batchnorm(model)
    return model


def starting_weights(start: Path, wanted: ModelConfig) -> dict[str, Tensor]:
    """Return the weights in ``start``: a checkpoint folder, or one of the authors' files.

    Raises:
        CheckpointError: it cannot be read, or holds another network.
    """
    try:
        if start.is_dir():
            checkpoint = load_checkpoint(start)
            found, weights = checkpoint.config, checkpoint.state_dict
        else:
            _, found, weights = read_authors_network(start)
    except CheckpointError as error:
        raise CheckpointError(f"resume_from_checkpoint: {error}") from error
    _require_same_network(found, weights, wanted, start)
    return weights


def _require_same_network(
    found: ModelConfig, weights: dict[str, Tensor], wanted: ModelConfig, start: Path
) -> None:
    """Refuse weights of another network: list the options that differ, and what does not fit."""
    theirs, ours = _meaning(found), _meaning(wanted)
    differences = [
        f"{name} {theirs[name]!r} (this run: {value!r})"
        for name, value in ours.items()
        if theirs[name] != value
    ]
    if not differences:
        return
    lines = [
        f"resume_from_checkpoint {start}: its network is another one: it has "
        + ", ".join(differences)
    ]
    try:
        check_fits(weights, wanted, "of its weights")
    except CheckpointError as error:
        lines += str(error).splitlines()[1:]
    raise CheckpointError("\n".join(lines))


def _meaning(config: ModelConfig) -> dict[str, Any]:
    """Return what decides the network's function; a window's length and first weights do not."""
    idle = {"num_frame", "initializer", *without_effect(config)}
    return {name: None if name in idle else value for name, value in config.resolved.items()}
