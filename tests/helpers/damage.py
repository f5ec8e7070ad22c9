"""Random damages to shards and manifests, and whether one gets through the reader."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lasaft.errors import DataError
from pipeline.data.shards.manifest import MANIFEST_NAME
from pipeline.data.windows.reader import ShardSet
from tests.helpers.shards import make_shards, small_config
from tests.helpers.wavs import write_track

_WINDOW = 64
Truth = dict[tuple[str, str, int], torch.Tensor]


@dataclass(frozen=True)
class Place:
    """A sound shard folder, another of the same names and sizes, and all windows of the first."""

    folder: Path
    other: Path
    truth: Truth

    @classmethod
    def make(cls, root: Path) -> Place:
        """Build both below ``root``: two tracks of equal length, two record batches each."""
        folders = []
        for first, name in ((0, "one"), (100, "other")):
            for seed, track in enumerate(("a", "b")):
                songs = root / name / "songs" / "train" / track
                write_track(songs, seconds=1.6, first_seed=first + 10 * seed)
            make_shards(small_config(root / name / "songs", root / name))
            folders.append(root / name / "shards")
        return cls(folders[0], folders[1], dict(_windows(folders[0])))


def _windows(folder: Path) -> Iterator[tuple[tuple[str, str, int], torch.Tensor]]:
    shards = ShardSet(folder)
    rows, bins = shards.manifest.settings.row_shape
    for track in shards.manifest.tracks:
        for column in shards.manifest.settings.columns:
            for start in range(0, track.frames, _WINDOW):
                window = torch.empty(rows, _WINDOW, bins, dtype=torch.float16)
                shards.read_window(track, column, start, window)
                yield (track.name, column, start), window


def gets_through(place: Place) -> str | None:
    """Return how a damage got through the reader, None if it was found in time."""
    try:
        for key, window in _windows(place.folder):
            if not torch.equal(window, place.truth[key]):
                return f"a wrong window came out: {key}"
    except DataError as error:
        text = str(error)
        if "python -m jobs.preprocess" not in text or str(place.folder) not in text:
            return f"found, but the message does not say where or what to run: {text}"
        return None
    return "nothing was noticed"


def _flip(data: bytearray, draw: random.Random, _: bytes) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _zero(data: bytearray, draw: random.Random, _: bytes) -> None:
    start, length = draw.randrange(len(data)), draw.choice((1, 512, 4096, 65536))
    data[start : start + length] = bytes(len(data[start : start + length]))


def _cut(data: bytearray, draw: random.Random, _: bytes) -> None:
    del data[draw.randrange(len(data)) :]


def _grow(data: bytearray, draw: random.Random, _: bytes) -> None:
    data += bytes(draw.randrange(1, 5000))


def _replace(data: bytearray, _: random.Random, other: bytes) -> None:
    data[:] = other


_WAYS: dict[str, Callable[[bytearray, random.Random, bytes], None]] = {
    "bit flip": _flip,
    "zeroed range": _zero,
    "truncation": _cut,
    "growth": _grow,
    "swapped or stale": _replace,
}


@contextmanager
def damaged(place: Place, draw: random.Random) -> Iterator[tuple[str, Path]]:
    """Damage one file of the folder inside the ``with``; yield the kind and the file."""
    kind = draw.choices([*_WAYS, "missing"], [6, 3, 2, 1, 2, 1])[0]
    shards = sorted(place.folder.glob("*/*.arrow"))
    victim = draw.choice([*shards, place.folder / MANIFEST_NAME])
    whole = victim.read_bytes()
    others = [path for path in shards if path != victim] if victim in shards else []
    others.append(place.other / victim.relative_to(place.folder))
    data = bytearray(whole)
    while data == whole:
        _WAYS.get(kind, _flip)(data, draw, draw.choice(others).read_bytes())
    try:
        victim.unlink()
        if kind != "missing":
            victim.write_bytes(data)
        part = "manifest" if victim.name == MANIFEST_NAME else "shard"
        yield f"{part}: {kind}", victim
    finally:
        victim.write_bytes(whole)


def run(place: Place, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Make ``count`` damages; return how many of each kind, and a line for each not found."""
    draw, kinds, missed = random.Random(seed), Counter[str](), []
    for number in range(count):
        with damaged(place, draw) as (kind, victim):
            kinds[kind] += 1
            how = gets_through(place)
            if how is not None:
                missed.append(f"{number}: {kind} of {victim.name}: {how}")
    return kinds, missed
