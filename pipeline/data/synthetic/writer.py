"""Writes sets of synthetic songs as MUSDB18 lays them out: whole songs, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lasaft.errors import DataError
from lasaft.files import (
    atomic_write_bytes,
    atomic_write_json,
    first_link,
    publish_folder,
    read_steadily,
)
from pipeline.data.synthetic import VERSION
from pipeline.data.synthetic.musdb_files import STREAMS, musdb_setup, wav_bytes, write_wavs
from pipeline.data.synthetic.names import song_name

Split = Literal["train", "valid", "test"]

SAMPLE_RATE = 44100
# Each split counts from its own base, so more training songs leave the test songs as they are.
_FIRST_INDEX: dict[Split, int] = {"train": 0, "valid": 10_000, "test": 20_000}
_PARAMETERS = "songs.json"
_SETUP = "mus.yaml"
_PARTIAL = ".partial"  # beside train/ and test/, so musdb never takes what lies in it for a track


@dataclass(frozen=True)
class SongSet:
    """Everything that the bytes of a set of songs depend on."""

    train: int  # songs of each split (0 to 9999)
    valid: int
    test: int
    seconds: float  # length of a song
    seed: int  # of all songs; a song depends on (seed, index, seconds) only
    layout: Literal["wav"] = "wav"  # ``songs.json`` and the steps of a run tell it


@dataclass(frozen=True)
class SongEntry:
    """One song of a set: its split, its index and its name."""

    split: Split
    index: int
    name: str

    def path(self, root: Path) -> Path:
        """Return the folder of this song below ``root``."""
        return root / ("test" if self.split == "test" else "train") / self.name


def song_list(songs: SongSet) -> list[SongEntry]:
    """Return the songs of a set in order: training, validation, test."""
    return [
        SongEntry(split, first + number, song_name(songs.seed, first + number))
        for split, first in _FIRST_INDEX.items()
        for number in range(getattr(songs, split))
    ]


def begin_songs(root: Path, songs: SongSet) -> list[SongEntry]:
    """Note the parameters in ``root`` and return the songs that are still to be written.

    Raises:
        DataError: ``root`` holds songs made with other parameters or files that are not ours, or
            a parameter is out of range.
    """
    _check_parameters(songs)
    wanted = {"format": VERSION, "sample_rate": SAMPLE_RATE, **asdict(songs)}
    if (
        link := first_link([root, *(root / split for split in ("train", "test", _PARTIAL))])
    ) is not None:
        raise DataError(f"{link}: is a link, and nothing is written where a link leads")
    record = root / _PARAMETERS
    if record.exists():
        _check_same(record, wanted)
    elif root.is_file() or (root.is_dir() and any(item.name[0] != "." for item in root.iterdir())):
        raise DataError(
            f"{root}: not empty, and without a {_PARAMETERS}, so it is not a folder of synthetic "
            "songs; give an empty or a new folder"
        )
    else:
        atomic_write_json(record, wanted)
    return [entry for entry in song_list(songs) if not _is_whole(root, songs, entry)]


def write_song(root: Path, songs: SongSet, entry: SongEntry) -> Path:
    """Compose and write one song below ``root``: it appears whole or not at all.

    Songs may be written in any order and by any number of processes at once, each song by one
    of them, between :func:`begin_songs` and :func:`finish_songs`.

    Returns:
        The song's folder.

    Raises:
        DataError: it cannot be written (disk full, no permission).
    """
    place = entry.path(root)
    try:
        _write_song(root, songs, entry, place)
    except OSError as error:
        raise DataError(f"{place}: cannot be written: {error.strerror or error}") from error
    return place


def _write_song(root: Path, songs: SongSet, entry: SongEntry, place: Path) -> None:
    from pipeline.data.synthetic.song import compose_movements  # it needs scipy

    place.parent.mkdir(parents=True, exist_ok=True)
    staged = root / _PARTIAL / entry.name
    with publish_folder(staged) as folder:
        write_wavs(folder, compose_movements(songs.seed, entry.index, songs.seconds, SAMPLE_RATE))
    if place.exists():  # damaged, or it would not be written again
        shutil.rmtree(place)
    staged.replace(place)


def finish_songs(root: Path, songs: SongSet) -> Path:
    """Write ``mus.yaml``, which names the validation songs, once every song is there.

    Raises:
        DataError: songs are missing.
    """
    entries = song_list(songs)
    missing = [entry.name for entry in entries if not _is_whole(root, songs, entry)]
    if missing:
        raise DataError(f"{root}: {len(missing)} songs are not written yet, first {missing[0]!r}")
    shutil.rmtree(root / _PARTIAL, ignore_errors=True)
    for subset in ("train", "test"):
        (root / subset).mkdir(exist_ok=True)
    setup = musdb_setup(SAMPLE_RATE, [entry.name for entry in entries if entry.split == "valid"])
    # ASCII only: musdb reads this file in whatever encoding the machine prefers.
    text = yaml.safe_dump(setup, sort_keys=False, allow_unicode=False)
    if not (root / _SETUP).exists() or (root / _SETUP).read_text("ascii") != text:
        atomic_write_bytes(root / _SETUP, text.encode("ascii"))
    return root


def _check_parameters(songs: SongSet) -> None:
    for split in _FIRST_INDEX:
        count = getattr(songs, split)
        if not 0 <= count <= 9999:
            raise DataError(f"synthetic songs: {split}={count}, allowed are 0 to 9999")
    if songs.train + songs.valid + songs.test == 0:
        raise DataError("synthetic songs: train, valid and test are all 0, so there is no song")
    if not 2 <= songs.seconds <= 3600:
        raise DataError(f"synthetic songs: seconds={songs.seconds}, allowed are 2 to 3600")


def _check_same(record: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = json.loads(read_steadily(record))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{record}: not readable as JSON ({error}); remove the folder") from error
    if not isinstance(found, dict):
        raise DataError(f"{record}: not a JSON object; remove the folder")
    if found != wanted:
        other = [
            f"{key}={found.get(key)!r}, not {wanted[key]!r}"
            for key in wanted
            if found.get(key) != wanted[key]
        ]
        raise DataError(
            f"{record}: the songs there were made with {'; '.join(other)}; use the same values or "
            "another folder"
        )


def _is_whole(root: Path, songs: SongSet, entry: SongEntry) -> bool:
    place = entry.path(root)
    size = wav_bytes(round(songs.seconds * SAMPLE_RATE))
    files = [place / f"{stream}.wav" for stream in STREAMS]
    return all(file.is_file() and file.stat().st_size == size for file in files)
