"""Shards in an object store, opened, read and compared."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig
from pipeline.data.shards.manifest import Manifest, ShardEntry, read_manifest
from pipeline.data.windows.cache import ShardCache
from pipeline.data.windows.draw_plan import draw_plan
from pipeline.data.windows.loader import BatchLoader
from pipeline.data.windows.reader import ShardSet
from pipeline.data.windows.remote import RemoteShardSet

LARGE = 10**9


def entries_of(manifest: Manifest) -> list[ShardEntry]:
    """Return all shards of a manifest."""
    return [shard for track in manifest.tracks for shard in track.shards]


def opened(place: str | RemoteFolder, folder: Path, limit: int = LARGE) -> RemoteShardSet:
    """Open shards by their address, with a cache in ``folder``."""
    store = RemoteFolder(place) if isinstance(place, str) else place
    return RemoteShardSet(store, read_manifest(store), ShardCache(folder, limit))


def wait_until_filled(shards: RemoteShardSet) -> None:
    """Wait until the background has fetched what it could; a fault of it is raised here."""
    shards._filler.join()
    shards._filler.raise_fault()


def batches(shards: ShardSet, config: RunConfig, epoch: int = 0) -> list[torch.Tensor]:
    """Return the mixtures and targets of an epoch."""
    plan = draw_plan(shards.manifest, config, epoch)
    with BatchLoader(shards, plan, threads=2) as loader:
        return [part.clone() for batch in loader for part in (batch.mixture, batch.target)]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))
