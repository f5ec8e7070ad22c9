"""Processes that tests start: what they cost, and several that train, without Ray."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        _spawn(world, meeting, work, arguments)


def _spawn(
    world: int, meeting: Path, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    spawn(_enter, (world, f"file://{meeting}", work, arguments), nprocs=world, join=True)


def _enter(
    rank: int, world: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    assert torch.get_num_threads() == 1, "these tests compare with one-thread results"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    work(*arguments)
    distributed.barrier()
    # A thread of gloo may still be about to drop the last collective's tensors, for which it needs
    # Python: where the interpreter is shut down before that, the process dies of SIGABRT.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
