"""A node's cache of shards: bounded, shared, safe when killed, never trusted blindly."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lasaft.errors import ConfigError
from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig
from pipeline.data.shards.manifest import ShardEntry, read_manifest
from pipeline.data.windows.cache import ShardCache
from pipeline.data.windows.reader import ShardSet
from tests.helpers.far_shards import batches, entries_of, opened, same, wait_until_filled

# The cache


def test_a_cache_that_is_too_small_is_never_exceeded(
    local_run: RunConfig, local_shards: Path, store: RemoteFolder, tmp_path: Path
) -> None:
    size = max(entry.size_bytes for entry in entries_of(read_manifest(local_shards)))
    cache, limit = tmp_path / "cache", 2 * size + 1000
    with opened(store, cache, limit) as far:
        for epoch in range(3):
            assert same(
                batches(far, local_run, epoch), batches(ShardSet(local_shards), local_run, epoch)
            )
            assert sum(file.stat().st_size for file in cache.iterdir()) <= limit
    assert len(list(cache.glob("*.arrow"))) == 2


def test_the_cache_writes_nothing_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("of the user")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".lock").symlink_to(tmp_path / "keys")
    with pytest.raises(ConfigError, match=r"cache_dir: cannot write in .* \(is a link, and"):
        ShardCache(tmp_path / "cache", 2500)
    (tmp_path / "cache" / ".lock").unlink()
    cache, entry = ShardCache(tmp_path / "cache", 2500), _entry(b"x")
    cache.file(entry).with_suffix(".part").symlink_to(tmp_path / "keys")
    with pytest.raises(OSError, match="symbolic links"):
        cache.begin(entry, ())
    assert (tmp_path / "keys").read_text() == "of the user"


def test_the_least_recently_used_copy_of_other_data_makes_room(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2500)
    entries = [_entry(bytes([number]) * 1000) for number in range(4)]
    for age, entry in enumerate(entries[:2]):
        _put(cache, entry, bytes([age]) * 1000)
        os.utime(cache.file(entry), (age, age))
    held = cache.open(entries[0])  # used again, and kept in use
    assert held is not None
    os.utime(cache.file(entries[0]), (0, 0))
    _put(cache, entries[2], b"\2" * 1000)
    assert {file.stem for file in tmp_path.glob("*.arrow")} == {
        entries[0].sha256,
        entries[2].sha256,
    }
    own = {entry.sha256 for entry in entries[2:]}
    assert cache.begin(entries[3], own) is None  # one is in use, one of the same data
    held.close()
    file = cache.begin(entries[3], own)
    assert file is not None
    cache.drop(file, entries[3])
    assert list(tmp_path.glob("*.part")) == []


def _entry(data: bytes) -> ShardEntry:
    sha256 = hashlib.sha256(data).hexdigest()
    return ShardEntry(
        path="a", frames=1, size_bytes=len(data), sha256=sha256, offsets={}, crc32={}, rest_crc32=0
    )


def _put(cache: ShardCache, entry: ShardEntry, data: bytes) -> None:
    file = cache.begin(entry, {entry.sha256})
    assert file is not None
    file.write(data)
    cache.publish(file, entry)


def test_a_damaged_copy_is_found_and_fetched_again(
    local_run: RunConfig, local_shards: Path, store: RemoteFolder, tmp_path: Path
) -> None:
    cache, wanted = tmp_path / "cache", batches(ShardSet(local_shards), local_run)
    with opened(store, cache) as far:
        batches(far, local_run)
        wait_until_filled(far)
    entries = [track.shards[0] for track in read_manifest(local_shards).split("train")]
    files = [cache / f"{entry.sha256}.arrow" for entry in entries]
    damaged = bytearray(files[0].read_bytes())
    for offset in (start for starts in entries[0].offsets.values() for start in starts):
        damaged[offset + 1000] ^= 1  # a bit of every column and record batch
    files[0].write_bytes(damaged)
    files[1].write_bytes(files[1].read_bytes()[:-1])
    files[2].write_bytes(damaged)  # another song
    for _ in range(2):  # each is found, given up, and fetched again
        with opened(store, cache) as far:
            assert same(batches(far, local_run), wanted)
            wait_until_filled(far)
    assert all(hashlib.sha256(f.read_bytes()).hexdigest() == f.stem for f in files)


def test_processes_fill_together_and_die_without_harm(store: RemoteFolder, tmp_path: Path) -> None:
    entries, cache = entries_of(read_manifest(store)), tmp_path / "cache"
    # Three that are killed while they fill, then two that fill at the same time.
    command = [sys.executable, "-m", "tests.helpers.fillers", store.address, str(cache)]
    done = subprocess.run([*command, "0.0", "0.04", "0.1"], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert {file.stem for file in cache.glob("*.arrow")} == {entry.sha256 for entry in entries}
    assert list(cache.glob("*.part")) == []
    assert sum(f.stat().st_size for f in cache.iterdir()) == sum(e.size_bytes for e in entries)
    for file in cache.glob("*.arrow"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
