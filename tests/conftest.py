"""What holds for every test."""

from __future__ import annotations

import os
import signal

import pytest

# A shell starts background commands deaf to Ctrl-C; commands that the tests start must hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported, here and in every process that a test starts: threads that wait for
# each other sleep soon. Where other work runs on the same cores, spinning ones make a small
# network's test many times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Ray: the tests in files called ``test_..._on_ray.py``."""
    for item in items:
        if item.path.stem.endswith("_on_ray"):
            item.add_marker(pytest.mark.ray)
