"""Processes that fill a cache of shards and are killed: ``ADDRESS CACHE SECONDS...``."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

from pipeline.cluster.store import RemoteFolder
from pipeline.data.shards.manifest import read_manifest
from pipeline.data.windows.cache import ShardCache
from pipeline.data.windows.remote import RemoteShardSet
from tests.helpers.far_shards import wait_until_filled

_LIMIT_BYTES = 10**9


def fill(address: str, cache: Path) -> None:
    """Fetch all shards that no other process fetches."""
    store = RemoteFolder(address)
    manifest = read_manifest(store)
    with RemoteShardSet(store, manifest, ShardCache(cache, _LIMIT_BYTES)) as shards:
        shards.fill([shard for track in manifest.tracks for shard in track.shards])
        wait_until_filled(shards)


def start(address: str, cache: Path) -> int:
    """Begin to fill in a process of its own and return its id."""
    pid = os.fork()
    if pid == 0:
        fill(address, cache)
        os._exit(0)
    return pid


def main(address: str, cache: Path, lives: list[float]) -> int:
    """Kill a process after each of ``lives`` seconds of filling, then let two end together."""
    for seconds in lives:
        pid = start(address, cache)
        while not cache.exists():
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for file in cache.glob("*.arrow"):
            assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    pids = [start(address, cache) for _ in range(2)]
    return max(os.waitpid(pid, 0)[1] for pid in pids)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), [float(word) for word in sys.argv[3:]]))
