"""What the files for clusters name, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from tests.helpers.object_store import object_store, put_object


@pytest.fixture
def my_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The bucket of the examples, with a song in it."""
    with object_store() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        system, _ = fs.FileSystem.from_uri("s3://my-bucket?allow_bucket_creation=true")
        system.create_dir("my-bucket")
        put_object("s3://my-bucket/musdb18hq", "train/A Song/mixture.wav", b"sound")
        yield
