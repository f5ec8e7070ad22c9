"""Tiny song folders in MUSDB18's shape, for every test that needs real-looking data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.data.synthetic import write_songs


def make_musdb(
    root: Path,
    *,
    train: int = 2,
    valid: int = 1,
    test: int = 1,
    seconds: float = 4.0,
    seed: int = 0,
    layout: Literal["wav", "stem.mp4"] = "wav",
) -> Path:
    """Write synthetic songs to the new folder ``root`` and return it (about 0.25 s a song).

    Load it with ``musdb.DB(root, setup_file="mus.yaml", is_wav=True)``.
    """
    return write_songs(
        root, train=train, valid=valid, test=test, seconds=seconds, seed=seed, layout=layout
    )
