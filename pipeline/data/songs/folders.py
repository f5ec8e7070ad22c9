"""Where the tracks of a data set lie, and which split each belongs to; no audio is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lasaft.errors import DataError
from lasaft.output import shown
from pipeline.data.songs.splits import SPLITS, SPLITS_FILE, normal, read_splits, validation_names

MIXTURE = "mixture"
STEM_MP4_SUFFIX = ".stem.mp4"


@dataclass(frozen=True)
class Place:
    """A folder of stems or a .stem.mp4 file; ``split`` is None where no split has it."""

    name: str
    split: str | None
    path: Path


def find_places(root: Path, is_wav: bool | None) -> tuple[list[Place], bool]:
    """Return all tracks of a data set, sorted by split and name, and whether they are folders.

    Args:
        root: the data set's folder, absolute.
        is_wav: folders of stems, or .stem.mp4 files (None: look).

    Raises:
        DataError: it is no data set, or its ``splits.yaml`` or ``mus.yaml`` is wrong.
    """
    if not root.is_dir():
        raise DataError(f"musdb_root {root}: there is no such folder")
    folders = [root / split for split in SPLITS if (root / split).is_dir()]
    listed = os.path.lexists(root / SPLITS_FILE)
    if not folders and not listed:
        found = sorted(item.name for item in root.iterdir() if not item.name.startswith("."))
        held = ", ".join(map(shown, found[:5]))
        raise DataError(
            f"musdb_root {root}: this is no MUSDB18 folder: it holds neither train/ nor test/, "
            f"but {held or 'nothing'}; allowed: folders train, valid "
            f"and test with tracks in them, or tracks and a {SPLITS_FILE} that says which is which"
        )
    searched = [root, *folders] if listed else folders
    wav = _is_wav_layout(root, searched, is_wav)
    found = [path for folder in searched for path in _candidates(folder, wav)]
    if listed:
        found = [path for path in found if path not in folders]
        places = _by_file(root / SPLITS_FILE, found, wav)
    else:
        places = _by_folder(root, found, wav)
    order = (*SPLITS, None)
    return sorted(places, key=lambda place: (order.index(place.split), place.name)), wav


def _by_file(file: Path, found: Iterable[Path], wav: bool) -> list[Place]:
    paths: dict[str, Path] = {}
    doubled = []
    for path in found:
        name = _name(path, wav)
        if name in paths:
            doubled.append(f"two tracks are called {name!r}: {paths[name]} and {path}; rename one")
        paths[name] = path
    if doubled:
        raise DataError(f"{file}: " + "\n  ".join(doubled))
    splits = read_splits(file, paths.keys())
    return [Place(name, splits.get(name), path) for name, path in paths.items()]


def _by_folder(root: Path, found: Sequence[Path], wav: bool) -> list[Place]:
    training = [_name(path, wav) for path in found if path.parent.name == "train"]
    valid = validation_names(root, training)
    places = []
    for path in found:
        split, name = path.parent.name, _name(path, wav)
        is_valid = split == "train" and normal(name) in valid
        places.append(Place(name, "valid" if is_valid else split, path))
    return places


def _name(path: Path, wav: bool) -> str:
    return path.name if wav else path.name.removesuffix(STEM_MP4_SUFFIX)


def _candidates(folder: Path, wav: bool) -> list[Path]:
    visible = [item for item in folder.iterdir() if not item.name.startswith((".", "__MACOSX"))]
    lost = [item for item in visible if item.is_symlink() and not item.exists()]
    if lost:
        raise DataError(
            f"{lost[0]}: is a link to something that is not there ({len(lost)} such in {folder}); "
            "fetch what it leads to, or remove the link"
        )
    if wav:
        return [item for item in visible if item.is_dir()]
    return [item for item in visible if item.name.endswith(STEM_MP4_SUFFIX) and item.is_file()]


def _is_wav_layout(root: Path, folders: Sequence[Path], is_wav: bool | None) -> bool:
    wavs = {item for folder in folders for item in _candidates(folder, True)} - set(folders)
    mp4s = {item for folder in folders for item in _candidates(folder, False)}
    if is_wav is None and wavs and mp4s:
        raise DataError(
            f"musdb_root {root}: holds {len(wavs)} track folders and {len(mp4s)} .stem.mp4 files; "
            "say which to read with --musdb_is_wav True or False"
        )
    wav = is_wav if is_wav is not None else not mp4s
    if not (wavs if wav else mp4s):
        other = mp4s if wav else wavs
        names = ", ".join(folder.name for folder in folders)
        raise DataError(
            f"musdb_root {root}: no {'wav' if wav else STEM_MP4_SUFFIX} track in {names}; "
            + (f"found {len(other)} in the other layout" if other else "the folders are empty")
        )
    return wav
