"""What holds for every test."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

_LIBRARY = Path(__file__).parent / "lasaft"

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
    """Mark what needs Ray, the tests in files called ``test_..._on_ray.py``, and order the files.

    The longest is first, the workflow: begun last, it would keep one process busy when the others
    have nothing left to do. Beside it the library is tested, as long as ``./run test`` has the
    demo on Ray on the same cores; then come the others on Ray, which take minutes too.
    """
    on_ray = [item for item in items if item.path.stem.endswith("_on_ray")]
    for item in on_ray:
        item.add_marker(pytest.mark.ray)
    on_ray.sort(key=lambda item: item.path, reverse=True)
    longest = [item for item in on_ray if item.path == on_ray[0].path]
    library = [item for item in items if _LIBRARY in item.path.parents]
    first = dict.fromkeys([*longest, *library, *on_ray])
    items[:] = [*first, *(item for item in items if item not in first)]
