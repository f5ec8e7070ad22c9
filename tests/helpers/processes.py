"""Processes that tests start: what they cost, and several that train, without Ray."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from pipeline.cluster.locks import FileLock

# They are forks of one process that has imported what they need, torch's compiler with it: alone,
# each would spend 4 processor seconds on that. No shapes are checked in them.
_PRELOADED = ["torch._dynamo", "tests.helpers.training", "tests.helpers.small_training"]


def processor_seconds() -> float:
    """Return what all ended processes that this one has started cost, busy machine or not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_processes(world: int, folder: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Run ``work(*arguments)`` in ``world`` processes of one gloo group; its errors are raised.

    Each has one thread: with more, sums are taken in another order.
    """
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    multiprocessing.set_forkserver_preload(_PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        given = (world, f"file://{meeting}", dict(os.environ), partial(work, *arguments))
        start_processes(_enter, given, nprocs=world, start_method="forkserver")


def _enter(
    rank: int, world: int, meeting: str, environment: dict[str, str], work: Callable[[], None]
) -> None:
    os.environ.update(environment)  # the server has that of the first test
    assert torch.get_num_threads() == 1, "these tests compare with one-thread results"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    work()
    distributed.barrier()
    # A thread of gloo may still be about to drop the last collective's tensors, for which it needs
    # Python: where the interpreter is shut down before that, the process dies of SIGABRT.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


OTHER_COMMAND = "jobs.run on node7 since 2026-11-30 09:00:00 UTC (process 12)"


@contextmanager
def written_by_another(folder: Path) -> Iterator[None]:
    """Let another command, :data:`OTHER_COMMAND`, hold the lock of a folder."""
    lock = FileLock(folder / ".lock")
    assert lock.take(OTHER_COMMAND) is None
    try:
        yield
    finally:
        lock.drop()
