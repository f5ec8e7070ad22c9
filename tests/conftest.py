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
# Ray's workers would step back for whatever else computes (niceness 15): beside other tests they
# hardly came on.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Ray, the tests in files called ``test_..._on_ray.py``, and put it first.

    These files take minutes each, the demo longest of all, then the workflow: begun last, they
    would keep one process busy when the others have nothing left to do.
    """
    on_ray = [item for item in items if item.path.stem.endswith("_on_ray")]
    for item in on_ray:
        item.add_marker(pytest.mark.ray)
    files = sorted(
        {item.path for item in on_ray}, key=lambda p: ("demo" in p.stem, p), reverse=True
    )
    items[:] = [item for file in files for item in on_ray if item.path == file] + [
        item for item in items if item not in on_ray
    ]
