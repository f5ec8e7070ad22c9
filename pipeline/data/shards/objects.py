"""A finished shard as an object of a store, with a mark beside it by which it is trusted."""

from __future__ import annotations

from pathlib import Path

from lasaft.errors import DataError
from pipeline.cluster.store import RemoteFolder
from pipeline.data.shards.manifest import ShardEntry

# In the form of sha256sum.
MARK_SUFFIX = ".sha256"


def is_uploaded(store: RemoteFolder, entry: ShardEntry) -> bool:
    """Return whether the store holds a shard whole, by its mark and its length."""
    try:
        marked = (store / f"{entry.path}{MARK_SUFFIX}").read_bytes() == _mark(entry)
    except FileNotFoundError:
        return False
    return marked and (store / entry.path).size() == entry.size_bytes


def upload_shard(folder: Path, store: RemoteFolder, entry: ShardEntry) -> bool:
    """Copy a shard of ``folder`` to the store unless it is there; return whether it was copied.

    Raises:
        DataError: the shard is damaged, or the store does not take it.
    """
    if is_uploaded(store, entry):
        return False
    target, mark = store / entry.path, store / f"{entry.path}{MARK_SUFFIX}"
    if mark.size() is not None:
        mark.delete()  # it must never stand beside an object that is half new
    if target.put(folder / entry.path) != entry.sha256:
        raise DataError(
            f"shard {folder / entry.path}: its sha256 is not the manifest's; build it again: "
            f"python -m jobs.preprocess --repair --shards_dir {folder} --musdb_root <MUSDB18>"
        )
    mark.write_bytes(_mark(entry))
    return True


def _mark(entry: ShardEntry) -> bytes:
    return f"{entry.sha256}  {Path(entry.path).name}\n".encode()
