"""Notices that a node of the cluster has to go soon, such as a spot instance that is taken back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_POLL_SECONDS = 2.0


@contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Yield what says whether a node of this training has been told to go (is being drained).

    Nodes are drained by ``ray drain-node``, an autoscaler, or the notice of a cloud. Call in every
    worker process of Ray Train, which asks Ray for it and starts the processes elsewhere when the
    node is gone: so once it is true, it stays true.
    """
    from ray.exceptions import RayError
    from ray.train import get_preemption_info

    stop, leaving = threading.Event(), threading.Event()

    def watch() -> None:
        # The answer comes when all processes have asked: threads wait for that, the training does
        # not.
        while not (leaving.is_set() or stop.wait(_POLL_SECONDS)):
            try:
                found = get_preemption_info()
            except RayError:
                continue  # the cluster does not answer now
            if found is not None:
                leaving.set()

    threading.Thread(target=watch, name="preemption", daemon=True).start()
    try:
        yield leaving.is_set
    finally:
        stop.set()
