"""Where a run reads its shards: a folder, or an object store."""

from __future__ import annotations

from pathlib import Path

from pipeline.cluster.store import RemoteFolder
from pipeline.config.folders import RunFolder


def shard_place(folder: RunFolder) -> Path | RemoteFolder:
    """Return where a run reads its shards: a folder, or the object store that holds them."""
    if folder.shards_address is None:
        return folder.shards
    return RemoteFolder(folder.shards_address)
