"""An object store for the tests of what lies in one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.object_store import address, object_store


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of an S3-like server with an empty bucket."""
    with object_store() as port:
        yield port


@pytest.fixture
def place(port: int, tmp_path: Path) -> str:
    """The address of a run that is not there yet."""
    return address(tmp_path.name, port)
