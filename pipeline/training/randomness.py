"""Seeds: every random stream of a training is a function of (seed, step, rank).

Nothing random has to be saved: a step's dropout masks are drawn from a generator seeded for that
step and rank alone, so a resumed run draws what the undisturbed run draws, at any place.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed made from ``parts``: equal parts, equal seed, on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_weights(seed: int) -> None:
    """Seed torch before the weights are drawn: the same weights on every rank."""
    torch.manual_seed(derive_seed(seed, "weights"))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one training step of one rank (dropout)."""
    torch.manual_seed(derive_seed(seed, "step", step, rank))
