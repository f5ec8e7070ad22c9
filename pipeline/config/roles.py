"""The recipe of a trained network: everything that made it but its seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# The seed, and where and how the work was done: not what was computed.
_LEFT_OUT = {
    "seed", "musdb_root", "musdb_is_wav", "shards_dir", "filed_mode", "max_frames_per_shard",
    "synthetic_train", "synthetic_valid", "synthetic_test", "synthetic_seconds", "synthetic_seed",
    "dev_mode", "world_size", "gpus", "resources_per_worker", "distributed_backend", "num_workers",
    "pin_memory", "max_failures", "save_top_k", "save_weights_only", "mid_epoch_seconds",
}  # fmt: skip


def recipe_of(provenance: Mapping[str, Any]) -> str | None:
    """Return a hash that trainings share that differ in their seed only.

    Args:
        provenance: of a checkpoint; the songs count by the hash of their shards.

    Returns:
        None where the record does not say how the network was trained.
    """
    config, data = provenance.get("config"), provenance.get("data_hash")
    if not isinstance(config, Mapping) or data is None:
        return None
    parts = {
        group: {n: v for n, v in config.get(group, {}).items() if n not in _LEFT_OUT}
        for group in ("model", "data", "train")
    }
    text = json.dumps([parts, data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
