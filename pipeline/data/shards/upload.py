"""Shards put into an object store; the manifest comes last."""

from __future__ import annotations

from pathlib import Path

from pipeline.cluster.store import RemoteFolder
from pipeline.data.shards.inspect import each_shard
from pipeline.data.shards.manifest import MANIFEST_NAME, Manifest, manifest_text
from pipeline.data.shards.objects import upload_shard


def upload_shards(folder: Path, store: RemoteFolder, manifest: Manifest) -> int:
    """Copy the shards of ``folder`` to the store, then their manifest; finished ones are kept.

    Returns:
        How many shards were copied.

    Raises:
        DataError: a shard is damaged, or the store does not take it; the same call goes on.
    """
    entries = [shard for track in manifest.tracks for shard in track.shards]
    copied = sum(each_shard("upload", entries, lambda entry: upload_shard(folder, store, entry)))
    text = manifest_text(manifest).encode()
    file = store / MANIFEST_NAME
    if file.size() is None or file.read_bytes() != text:
        file.write_bytes(text)
    return copied
