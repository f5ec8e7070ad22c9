"""Notices that a node of the cluster has to go soon, such as a spot instance that is taken back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_POLL_SECONDS = 2.0


@contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Watch the cluster inside the ``with``; yield what says whether a node is leaving it now.

    A node leaves from when it is drained (``ray drain-node``, an autoscaler, the notice of a cloud)
    until it is gone. Call in a process of the cluster.
    """
    from ray.exceptions import RayError

    stop, leaving = threading.Event(), threading.Event()

    def watch() -> None:
        while not stop.wait(_POLL_SECONDS):
            try:
                found = draining_nodes()
            except RayError:
                continue  # the head does not answer now
            if found:
                leaving.set()
            else:
                leaving.clear()

    threading.Thread(target=watch, name="preemption", daemon=True).start()
    try:
        yield leaving.is_set
    finally:
        stop.set()


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that have been told to go and are still there."""
    from ray._private.state import state

    return set(state.get_draining_nodes() or ())
