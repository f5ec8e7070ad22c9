"""Reads every byte of the shards in an object store again, and puts damaged ones there again."""

from __future__ import annotations

from pathlib import Path

from lasaft.errors import DataError, StageError
from pipeline.data.shards.inspect import Fault, Inspection
from pipeline.data.shards.manifest import ShardEntry, read_manifest
from pipeline.data.shards.repair import Repair
from pipeline.data.shards.store import RemoteFolder
from pipeline.data.shards.upload import MARK_SUFFIX, each_shard, upload_shards


def verify_store(store: RemoteFolder) -> Inspection:
    """Read every byte of the shards in the store.

    Raises:
        DataError: the manifest is missing or damaged, or the store does not answer.
    """
    manifest = read_manifest(store)
    entries = [shard for track in manifest.tracks for shard in track.shards]
    found = each_shard("verify", entries, lambda entry: _fault(store, entry))
    faults = [
        Fault(entry.path, what, entry.path, entry.sha256)
        for entry, what in zip(entries, found, strict=True)
        if what
    ]
    size = sum(entry.size_bytes for entry in entries)
    return Inspection(tuple(faults), manifest, manifest.settings, len(entries), size)


def repair_store(folder: Path, store: RemoteFolder, before: Inspection) -> Repair:
    """Copy the damaged shards again from the folder in which they were made, and verify.

    Raises:
        DataError: that folder does not hold the same shards any more, or they are damaged too.
        StageError: the store gives other bytes than it took.
    """
    manifest = read_manifest(folder)
    assert before.manifest is not None
    if manifest.hash != before.manifest.hash:
        raise DataError(
            f"{folder}: holds other shards (hash {manifest.hash[:12]}) than {store} "
            f"({before.manifest.hash[:12]}); run python -m jobs.preprocess as for those"
        )
    for fault in before.faults:
        mark = store / f"{fault.shard}{MARK_SUFFIX}"
        if mark.size() is not None:
            mark.delete()
    upload_shards(folder, store, manifest)
    after = verify_store(store)
    if after.faults:
        lines = "\n  ".join(map(str, after.faults))
        raise StageError(f"{store}: what was put there is damaged again:\n  {lines}")
    return Repair(before, after)


def _fault(store: RemoteFolder, entry: ShardEntry) -> str:
    file = store / entry.path
    size = file.size()
    if size is None:
        return "is missing"
    if size != entry.size_bytes:
        return f"has {size} bytes; the manifest says {entry.size_bytes}"
    return "" if file.sha256() == entry.sha256 else "its sha256 is not the manifest's"
