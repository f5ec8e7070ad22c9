"""How the processes of a training meet: at the address of the first one's node, and no other.

With Ray's own process group they meet on all interfaces of that node, where anybody is answered.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray.train.backend import Backend, BackendConfig

if TYPE_CHECKING:
    import torch

    from pipeline.training.loop.ranks import Ranks


class _NoGroup(Backend):
    """Leaves the process group to :func:`met`; each process sees the GPUs of all on its node."""

    share_cuda_visible_devices = True


class OwnMeeting(BackendConfig):
    """Says that the processes meet by themselves; what steers them needs no torch to read it."""

    @property
    def framework(self) -> Any:
        """Return what Ray's dashboard shows."""
        from ray.train.torch import TorchConfig

        return TorchConfig().framework

    @property
    def backend_cls(self) -> Any:
        """Return what Ray does around the training function."""
        return _NoGroup


@contextmanager
def met(device: torch.device) -> Iterator[Ranks]:
    """Be in torch's process group inside the ``with``; a process that trains alone needs none."""
    import torch
    from ray import train
    from ray.train.collective import broadcast_from_rank_zero
    from ray.util import get_node_ip_address
    from torch import distributed

    from pipeline.training.loop.ranks import Ranks

    if device.type == "cuda":
        torch.cuda.set_device(device)
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if world == 1:
        yield Ranks.current(device)
        return
    host = get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if host in ("127.0.0.1", "::1"):
        # A run on this machine alone; they would take the interface of the host's name, or any.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ[name] = "lo" if sys.platform == "linux" else "lo0"
    door = socket.create_server((host, 0), family=family) if rank == 0 else None
    host, port = broadcast_from_rank_zero(door.getsockname()[:2] if door else (host, 0))
    held = None if door is None else door.detach()
    store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        host, port, world, rank == 0, master_listen_fd=held
    )
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    yield Ranks.current(device)
    distributed.destroy_process_group()
