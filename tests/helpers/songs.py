"""Tiny song folders in MUSDB18's shape, for every test that needs real-looking data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lasaft.config import MUSDB18_SOURCES as SOURCES
from pipeline.data.synthetic.song import Song, compose_movements
from pipeline.data.synthetic.writer import SongSet, begin_songs, finish_songs, write_song


def make_musdb(
    root: Path,
    *,
    train: int = 2,
    valid: int = 1,
    test: int = 1,
    seconds: float = 4.0,
    seed: int = 0,
) -> Path:
    """Write synthetic songs to ``root`` and return it (about 0.25 s a song); whole ones stay.

    Load it with ``musdb.DB(root, setup_file="mus.yaml", is_wav=True)``.
    """
    songs = SongSet(train, valid, test, seconds, seed)
    for entry in begin_songs(root, songs):
        write_song(root, songs, entry)
    return finish_songs(root, songs)


def compose_song(seed: int, index: int, seconds: float, sample_rate: int = 44100) -> Song:
    """Return a whole song: its movements one after the other."""
    parts = list(compose_movements(seed, index, seconds, sample_rate))
    sources = {name: np.concatenate([part.sources[name] for part in parts], 1) for name in SOURCES}
    mixture = np.concatenate([part.mixture for part in parts], axis=1)
    return Song(parts[0].name, sources, mixture, sample_rate)
