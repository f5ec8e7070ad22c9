"""Seeded songs in the shape of MUSDB18: made-up music with voice, drums, bass and the rest."""

from __future__ import annotations

from pipeline.data.synthetic.writer import (
    VERSION,
    SongEntry,
    SongSet,
    begin_songs,
    finish_songs,
    song_list,
    write_song,
)

__all__ = [
    "VERSION",
    "SongEntry",
    "SongSet",
    "begin_songs",
    "finish_songs",
    "song_list",
    "write_song",
]
