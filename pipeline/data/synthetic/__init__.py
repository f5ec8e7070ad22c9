"""Seeded songs in the shape of MUSDB18: made-up music with voice, drums, bass and the rest."""

from __future__ import annotations

from pipeline.data.synthetic.composition import SOURCES
from pipeline.data.synthetic.song import Song, compose_song
from pipeline.data.synthetic.writer import (
    VERSION,
    SongEntry,
    SongSet,
    begin_songs,
    finish_songs,
    song_list,
    write_song,
    write_songs,
)

__all__ = [
    "SOURCES",
    "VERSION",
    "Song",
    "SongEntry",
    "SongSet",
    "begin_songs",
    "compose_song",
    "finish_songs",
    "song_list",
    "write_song",
    "write_songs",
]
