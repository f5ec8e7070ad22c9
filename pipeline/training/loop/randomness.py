"""Seeds: every random stream of a training is a function of (seed, step).

Nothing random has to be saved: a step's dropout masks are drawn from a generator seeded for that
step alone, so a resumed run draws what the undisturbed run draws, with any number of processes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed made from ``parts``: equal parts, equal seed, on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_weights(seed: int) -> None:
    """Seed torch before the weights are drawn: the same weights on every rank."""
    torch.manual_seed(derive_seed(seed, "weights"))


def seed_step(seed: int, step: int) -> None:
    """Seed torch for one training step: every process draws the masks of all of them."""
    torch.manual_seed(derive_seed(seed, "step", step))


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Let torch use nothing that gives other bits in another run, where that is ``wanted``.

    Otherwise cuDNN tries its algorithms for each shape and takes the fastest. Float32 is float32 in
    both: no TF32, which has ten bits of mantissa; who wants 16 bits asks for them (``precision``).

    What has no such form raises. On CPUs training is repeatable without it, at a fixed number of
    threads; on GPUs sums may otherwise be taken in another order.
    """
    if wanted:
        # cuBLAS reads it when it starts: before the first matrix product on a GPU.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn, before = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    products = torch.get_float32_matmul_precision()
    with cudnn.flags(
        enabled=cudnn.enabled, benchmark=not wanted, deterministic=wanted, allow_tf32=False
    ):
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(wanted or before)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            torch.set_float32_matmul_precision(products)
