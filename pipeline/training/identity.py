"""Whether a training folder belongs to this configuration: what may change on a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lasaft.errors import ConfigError
from lasaft.files import atomic_write_json
from pipeline.config import RunConfig
from pipeline.folders import RunFolder
from pipeline.training.result import TrainResult
from pipeline.training.state import state_file

# How the work is done and when it ends, not what is computed: free to change on a resume.
_FREE = {
    "train": {
        "min_epochs", "max_epochs", "patience", "save_weights_only", "mid_epoch_seconds",
        "world_size", "gpus", "distributed_backend", "num_workers", "pin_memory", "max_failures",
        "resources_per_worker", "time_limit_hours", "sample_every_epochs", "compile",
        "activation_checkpointing", "deterministic",
    },
    "data": {
        "musdb_root", "musdb_is_wav", "shards_dir", "filed_mode", "max_frames_per_shard",
        "cache_dir", "cache_gb",
        "synthetic_train", "synthetic_valid", "synthetic_test", "synthetic_seconds",
        "synthetic_seed", "dev_mode",
    },
}  # fmt: skip


def identity(config: RunConfig, data_hash: str) -> dict[str, Any]:
    """Return everything that decides what a training computes, flat and JSON-like."""
    whole = config.model_dump(mode="json")
    parts = {
        f"{group}.{name}": value
        for group in ("model", "data", "train")
        for name, value in whole[group].items()
        if name not in _FREE.get(group, set())
    }
    if config.train.lr_schedule == "cosine":
        parts["train.max_epochs"] = config.train.max_epochs
    return parts | {"data hash": data_hash}


def claim(folder: RunFolder, config: RunConfig, data_hash: str) -> None:
    """Make the training folder this configuration's, or find that it is.

    Raises:
        ConfigError: it is another's; one line for each option that differs.
    """
    claim_folder(folder.training, identity(config, data_hash), "training")


def claim_folder(root: Path, mine: dict[str, Any], what: str) -> None:
    """Make a folder that of the ``what`` with this identity, or find that it is.

    Raises:
        ConfigError: it is another's; one line for each option that differs.
    """
    file = root / "identity.json"
    if not file.exists():
        atomic_write_json(file, mine)
        return
    other = json.loads(file.read_bytes())
    names = sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
    if names:
        raise ConfigError(
            [
                f"{name.rpartition('.')[2]}: got {mine.get(name)!r}, but the {what} in {root} has "
                f"{other.get(name)!r}; allowed: that value, or another output_dir"
                for name in names
            ]
        )


def finished(folder: RunFolder, config: RunConfig) -> TrainResult | None:
    """Return the result of a training that has nothing left to do, None if it has to go on.

    Raises:
        ConfigError: it should go on to a later epoch, and its state was dropped at the end.
    """
    file = folder.training / "result.json"
    if not file.exists() or not folder.checkpoint.exists():
        return None
    saved = json.loads(file.read_bytes())
    stopping, result = _stopping(config), TrainResult.from_json(saved["result"])
    if saved["stopping"] == stopping and not (result.timed_out and _has_time(config, result)):
        return result
    if not state_file(folder).exists():
        raise ConfigError(
            f"save_weights_only: the training in {folder.training} has ended and dropped its "
            f"state, so it cannot go on with {stopping} instead of {saved['stopping']}; allowed: "
            "those values, or another output_dir"
        )
    return None


def finish(folder: RunFolder, config: RunConfig, result: TrainResult) -> None:
    """Record that training has ended with ``result``."""
    record = {"stopping": _stopping(config), "result": result.to_json()}
    atomic_write_json(folder.training / "result.json", record)


def _has_time(config: RunConfig, result: TrainResult) -> bool:
    limit = config.train.time_limit_hours
    return limit is None or 3600 * limit > result.seconds


def _stopping(config: RunConfig) -> dict[str, int]:
    train = config.train
    return {
        "min_epochs": train.min_epochs,
        "max_epochs": train.max_epochs,
        "patience": train.patience,
    }
