"""Where the tracks of a data set lie, and which split each belongs to; no audio is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lasaft.errors import DataError
from lasaft.output import shown
from pipeline.config.data import Layout
from pipeline.data.songs.layouts import OF_ONE_STEM, Stems, layout_in, songs_in, visible
from pipeline.data.songs.splits import SPLITS, SPLITS_FILE, normal, read_splits, validation_names
from pipeline.data.songs.wanted import Wanted

STEM_MP4_SUFFIX = ".stem.mp4"
_FOLDERS = {"train": "train", "valid": "valid", "validation": "valid", "test": "test"}
_TRAIN_LIST = "train.csv"


@dataclass(frozen=True)
class Place:
    """A song; ``split`` is None where no split has it."""

    name: str
    split: str | None
    path: Path  # the folder or the file to read
    layout: Layout | None  # None: a .stem.mp4 file
    stems: Stems  # of a .stem.mp4 none: its headers tell


def find_places(root: Path, wanted: Wanted) -> list[Place]:
    """Return all tracks of a data set, sorted by split and name.

    Args:
        root: the data set's folder, absolute.
        wanted: its sources, layout and is_wav count here.

    Raises:
        DataError: it is no data set, or its ``splits.yaml`` or ``mus.yaml`` is wrong.
    """
    if not root.is_dir():
        raise DataError(f"musdb_root {root}: there is no such folder")
    splits: dict[Path, str | None] = {
        root / name: split for name, split in _FOLDERS.items() if (root / name).is_dir()
    }
    train_list = root / _TRAIN_LIST
    if wanted.layout == "csv" and not train_list.is_file():
        raise DataError(f"musdb_root {root}: there is no {_TRAIN_LIST}, as layout csv has it")
    if train_list.is_file() and (wanted.layout == "csv" or root / "train" not in splits):
        splits.pop(root / "train", None)
        splits[train_list] = "train"
    listed = os.path.lexists(root / SPLITS_FILE)
    if not splits and not listed:
        found = sorted(item.name for item in root.iterdir() if not item.name.startswith("."))
        held = ", ".join(map(shown, found[:5]))
        raise DataError(
            f"musdb_root {root}: this is no MUSDB18 folder: it holds neither train/ nor test/, "
            f"but {held or 'nothing'}; allowed: folders train, valid "
            f"and test with tracks in them, or tracks and a {SPLITS_FILE} that says which is which"
        )
    if listed:
        splits = {root: None, **splits}
    places = _chosen(root, splits, wanted)
    places = _by_file(root / SPLITS_FILE, places) if listed else _by_folder(root, places)
    order = (*SPLITS, None)
    return sorted(places, key=lambda place: (order.index(place.split), place.name))


def _by_file(file: Path, found: Iterable[Place]) -> list[Place]:
    places: dict[str, Place] = {}
    doubled = []
    for place in found:
        if (other := places.get(place.name)) is not None:
            both = f"{other.path} and {place.path}"
            doubled.append(f"two tracks are called {place.name!r}: {both}; rename one")
        places[place.name] = place
    if doubled:
        raise DataError(f"{file}: " + "\n  ".join(doubled))
    splits = read_splits(file, places.keys())
    return [replace(place, split=splits.get(name)) for name, place in places.items()]


def _by_folder(root: Path, found: Sequence[Place]) -> list[Place]:
    training = [place.name for place in found if place.split == "train"]
    valid = validation_names(root, training)
    return [
        replace(place, split="valid")
        if place.split == "train" and normal(place.name) in valid
        else place
        for place in found
    ]


def _chosen(root: Path, splits: Mapping[Path, str | None], wanted: Wanted) -> list[Place]:
    """Return the songs of all folders, which are folders of stems or .stem.mp4 files."""
    stems, mp4s = [], []
    for place, split in splits.items():
        layout = wanted.layout
        # Validation and test have whole songs, wherever training has single stems.
        whole = (layout in OF_ONE_STEM and split not in ("train", None)) or layout == "csv"
        if layout is None or (whole and place.is_dir()):
            layout = layout_in(place, wanted.sources)
        for name, path, found in songs_in(place, layout):
            if path not in splits:
                stems.append(Place(name, split, path, layout, found))
        for file in visible(place) if place.is_dir() else ():
            if file.name.endswith(STEM_MP4_SUFFIX) and file.is_file():
                name = file.name.removesuffix(STEM_MP4_SUFFIX)
                mp4s.append(Place(name, split, file, None, {}))
    is_wav = wanted.is_wav
    if is_wav is None and stems and mp4s:
        raise DataError(
            f"musdb_root {root}: holds {len(stems)} track folders and {len(mp4s)} .stem.mp4 files; "
            "say which to read with --musdb_is_wav True or False"
        )
    wav = is_wav if is_wav is not None else not mp4s
    if not (stems if wav else mp4s):
        other = mp4s if wav else stems
        names = ", ".join(place.name for place in splits)
        raise DataError(
            f"musdb_root {root}: no {'wav' if wav else STEM_MP4_SUFFIX} track in {names}; "
            + (f"found {len(other)} in the other layout" if other else "the folders are empty")
        )
    return stems if wav else mp4s
