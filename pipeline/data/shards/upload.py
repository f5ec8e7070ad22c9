"""Shards put into an object store; the manifest comes last."""

from __future__ import annotations

from pathlib import Path

from lasaft.errors import DataError
from pipeline.data.shards.inspect import each_shard
from pipeline.data.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, manifest_text
from pipeline.data.shards.store import RemoteFolder

# Beside each finished object, in the form of sha256sum: a later run trusts the object for it.
MARK_SUFFIX = ".sha256"


def upload_shards(folder: Path, store: RemoteFolder, manifest: Manifest) -> int:
    """Copy the shards of ``folder`` to the store, then their manifest; finished ones are kept.

    Returns:
        How many shards were copied.

    Raises:
        DataError: a shard is damaged, or the store does not take it; the same call goes on.
    """
    entries = [shard for track in manifest.tracks for shard in track.shards]
    copied = sum(each_shard("upload", entries, lambda entry: _upload(folder, store, entry)))
    text = manifest_text(manifest).encode()
    file = store / MANIFEST_NAME
    if file.size() is None or file.read_bytes() != text:
        file.write_bytes(text)
    return copied


def _upload(folder: Path, store: RemoteFolder, entry: ShardEntry) -> bool:
    target, mark = store / entry.path, store / f"{entry.path}{MARK_SUFFIX}"
    line = f"{entry.sha256}  {Path(entry.path).name}\n".encode()
    marked = mark.size() is not None
    if marked and mark.read_bytes() == line and target.size() == entry.size_bytes:
        return False
    if marked:
        mark.delete()  # it must never stand beside an object that is half new
    if target.put(folder / entry.path) != entry.sha256:
        raise DataError(
            f"shard {folder / entry.path}: its sha256 is not the manifest's; build it again: "
            f"python -m jobs.preprocess --repair --shards_dir {folder} --musdb_root <MUSDB18>"
        )
    mark.write_bytes(line)
    return True
