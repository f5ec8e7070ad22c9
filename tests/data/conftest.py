"""Shards on this machine and in an object store, for the tests of both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from tests.helpers.object_store import address, object_store, put_folder
from tests.helpers.shards import make_shards, small_config
from tests.helpers.songs import make_musdb


@pytest.fixture(scope="session")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return the settings of a run whose shards are made: 3 songs, 1 to validate, 1 to test."""
    root = tmp_path_factory.mktemp("storage")
    songs = make_musdb(root / "songs", train=3, valid=1, test=1, seconds=2.0)
    config = small_config(songs, root / "run")
    make_shards(config)
    return config


@pytest.fixture(scope="session")
def local_shards(local_run: RunConfig) -> Path:
    """Return the folder of its shards."""
    return RunFolder.of(local_run).root / "shards"


@pytest.fixture(scope="session")
def store_port(local_shards: Path) -> Iterator[int]:
    """Yield the port of an S3-like server that has these shards below ``whole``."""
    with object_store() as port:
        put_folder(local_shards, address("whole", port))
        yield port


@pytest.fixture
def store(store_port: int) -> RemoteFolder:
    """Return the shards in the server."""
    return RemoteFolder(address("whole", store_port))


@pytest.fixture
def spoilt(store_port: int, local_shards: Path, tmp_path: Path) -> str:
    """Return the address of a copy that a test may change."""
    place = address(tmp_path.name, store_port)
    put_folder(local_shards, place)
    return place
