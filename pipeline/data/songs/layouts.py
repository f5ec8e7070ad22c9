"""How songs lie in the data sets that there are: which files are which stems of which song.

============ ======================================================================================
layout       what it is
============ ======================================================================================
``songs``    a folder a song, a file a stem: MUSDB18-HQ, and types 1 and 4 of the repository
             Music-Source-Separation-Training (MSST); or .stem.mp4 files, a file a song
``stems``    a folder a source, with any number of files, each of which is a song of one stem
             (MSST's type 2)
``csv``      the same as lines of a file ``train.csv`` with the columns type (or instrum) and path
             (MSST's type 3)
``moisesdb`` a folder a song, in it a folder a stem, whose files are summed
``slakh``    a folder a song, in it ``stems/``, whose files are summed by what ``metadata.yaml``
             calls the class of their instrument (Slakh2100)
============ ======================================================================================
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lasaft.errors import DataError
from pipeline.config.data import Layout
from pipeline.config.plain_yaml import read_plain
from pipeline.data.songs.splits import normal

MIXTURE = "mixture"
STEM_SUFFIXES = (".wav", ".flac")
METADATA = "metadata.yaml"  # of a song of Slakh
# Songs of one stem: what they lack belongs to no song, and is silence.
OF_ONE_STEM: tuple[Layout, ...] = ("stems", "csv")
# Songs of many stems: the source ``other``, if there is one, is what no other source takes.
OF_MANY_STEMS: tuple[Layout, ...] = ("moisesdb", "slakh")

Stems = Mapping[str, Sequence[Path]]  # by name, in normal spelling; the mixture is one of them
Song = tuple[str, Path, Stems]  # its name, the folder or file to read, its stems


def visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, without what is hidden.

    Raises:
        DataError: a link in it leads nowhere.
    """
    found = [item for item in folder.iterdir() if not item.name.startswith((".", "__MACOSX"))]
    lost = [item for item in found if item.is_symlink() and not item.exists()]
    if lost:
        raise DataError(
            f"{lost[0]}: is a link to something that is not there ({len(lost)} such in {folder}); "
            "fetch what it leads to, or remove the link"
        )
    return found


def layout_in(place: Path, sources: Sequence[str]) -> Layout:
    """Return how songs lie in a folder, or in a file."""
    if place.is_file():
        return "csv"
    folders = [item for item in visible(place) if item.is_dir()]
    if any((folder / "data.json").is_file() for folder in folders):
        return "moisesdb"
    if any((folder / METADATA).is_file() and (folder / "stems").is_dir() for folder in folders):
        return "slakh"
    names = {normal(folder.name) for folder in folders}
    return "stems" if len(sources) > 1 and names >= set(map(normal, sources)) else "songs"


def songs_in(place: Path, layout: Layout) -> Iterator[Song]:
    """Yield the songs that lie in a folder (of ``csv``: in a file) in one layout.

    Raises:
        DataError: a list of stems or what a song says of itself cannot be read.
    """
    if layout == "csv":
        yield from _listed(place)
        return
    for folder in sorted(item for item in visible(place) if item.is_dir()):
        if layout == "stems":
            for file in _sound_files(folder):
                yield f"{folder.name} - {file.name}", file, {normal(folder.name): [file]}
        else:
            yield folder.name, folder, _STEMS[layout](folder)


def stems_in(folder: Path) -> dict[str, list[Path]]:
    """Return the sound files of a track folder by the name of their stem, in normal spelling."""
    found: dict[str, list[Path]] = {}
    for file in _sound_files(folder):
        found.setdefault(normal(file.stem), []).append(file)
    return found


def _sound_files(folder: Path) -> list[Path]:
    files = (item for item in folder.iterdir() if item.suffix.lower() in STEM_SUFFIXES)
    return sorted(file for file in files if not file.name.startswith("."))


def _moisesdb(folder: Path) -> Stems:
    inside = sorted(item for item in visible(folder) if item.is_dir())
    return {normal(item.name): files for item in inside if (files := _sound_files(item))}


def _slakh(folder: Path) -> Stems:
    file = folder / METADATA
    classes = _classes(file, file.stat().st_mtime_ns)
    found: dict[str, list[Path]] = {}
    for sound in _sound_files(folder / "stems"):
        if sound.stem in classes:
            name = re.sub(r"\W+", "_", classes[sound.stem].lower()).strip("_")
            found.setdefault(name, []).append(sound)
    mixtures = [sound for sound in _sound_files(folder) if sound.stem == "mix"]
    return found | {MIXTURE: mixtures} if mixtures else found


@functools.lru_cache(maxsize=1 << 13)  # a set has 2,100, is listed several times, 5 ms each
def _classes(file: Path, _changed_ns: int) -> Mapping[str, str]:
    """Return the class of the instrument of each stem."""
    try:
        return {key: str(one["inst_class"]) for key, one in read_plain(file)["stems"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{file}: cannot be read as Slakh's metadata ({error}); allowed: stems, each with "
            "inst_class"
        ) from error


def _listed(file: Path) -> Iterator[Song]:
    wanted = "a first line 'type,path' (or 'instrum,path'), then a line for each stem"
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text, strict=True)
            for number, row in enumerate(rows, 1):
                stem, path = row.get("type") or row.get("instrum"), row.get("path")
                if not stem or not path:
                    raise DataError(
                        f"{file}: line {rows.line_num}: lacks a value; allowed: {wanted}"
                    )
                place = file.parent / path
                yield f"{number:06d} {place.name}", place, {normal(stem): [place]}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}); allowed: {wanted}") from error


_STEMS: Mapping[str, Callable[[Path], Stems]] = {
    "songs": stems_in,
    "moisesdb": _moisesdb,
    "slakh": _slakh,
}
