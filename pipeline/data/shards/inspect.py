"""Reads every byte of a shard folder or an object store again and says what is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from lasaft.errors import DataError
from lasaft.files import file_sha256
from pipeline.cluster.progress import Progress
from pipeline.cluster.store import RemoteFolder
from pipeline.data.shards.build import RECORD_SUFFIX, read_record
from pipeline.data.shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    ShardRecord,
    ShardSettings,
    TrackEntry,
    read_manifest,
    track_entry,
)
from pipeline.data.songs.splits import SPLITS

Found = TypeVar("Found")


@dataclass(frozen=True)
class Fault:
    """One damaged or missing file."""

    path: str  # of the file, relative to the shard folder
    what: str  # what is wrong with it
    shard: str = ""  # the shard to build again (its path), empty for the manifest
    sha256: str | None = None  # what the shard should have (None: nothing that can be read says it)

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True)
class Inspection:
    """What reading all shards of a folder or store again has found."""

    faults: tuple[Fault, ...]  # one for each damaged file; none if all is well
    manifest: Manifest | None  # what the place should hold, or None if the manifest is damaged
    settings: ShardSettings  # what the shards were made with
    shards: int  # how many there are
    size_bytes: int  # how much was read


def inspect_place(place: Path | RemoteFolder) -> Inspection:
    """Read every byte of the shards in a folder or an object store, with a progress bar."""
    return inspect_store(place) if isinstance(place, RemoteFolder) else inspect_shards(place)


def inspect_shards(folder: Path) -> Inspection:
    """Read every byte of a shard folder.

    Where the manifest is damaged, the records beside the shards say what should be in them.

    Raises:
        DataError: there is no manifest, or it is damaged and no record is left.
    """
    manifest, faults = None, []
    try:
        manifest = read_manifest(folder)
        shards = [shard for track in manifest.tracks for shard in track.shards]
        settings = manifest.settings
    except DataError as error:
        records = all_records(folder)
        if not (folder / MANIFEST_NAME).exists() or not records:
            raise
        text = str(error).removeprefix(f"{folder / MANIFEST_NAME}: ")
        faults.append(Fault(MANIFEST_NAME, text.partition("; run:")[0]))
        shards, settings = [record.shard for record in records], records[0].settings
        faults += _without_record(folder, {shard.path for shard in shards})
    found = each_shard(
        "verify", shards, lambda entry: shard_fault(folder, entry), os.cpu_count() or 1
    )
    faults += [fault for fault in found if fault is not None]
    stale = [fault for fault in faults if manifest and fault.shard and _agrees(folder, fault)]
    if stale:
        faults = [fault for fault in faults if fault not in stale]
        text = f"is stale: {stale[0].path} and its record agree with each other, not with it"
        faults.insert(0, Fault(MANIFEST_NAME, text))
    for track in manifest.tracks if manifest and not stale else ():
        faults += _record_faults(folder, track)
    size = sum(shard.size_bytes for shard in shards)
    return Inspection(tuple(faults), manifest, settings, len(shards), size)


def inspect_store(store: RemoteFolder) -> Inspection:
    """Read every byte of the shards in an object store.

    Raises:
        DataError: the manifest is missing or damaged, or the store does not answer.
    """
    manifest = read_manifest(store)
    entries = [shard for track in manifest.tracks for shard in track.shards]
    found = each_shard("verify", entries, lambda entry: _object_fault(store, entry))
    faults = tuple(fault for fault in found if fault is not None)
    size = sum(entry.size_bytes for entry in entries)
    return Inspection(faults, manifest, manifest.settings, len(entries), size)


def each_shard(
    title: str, entries: Sequence[ShardEntry], work: Callable[[ShardEntry], Found], threads: int = 4
) -> list[Found]:
    """Return ``work(entry)`` of each shard, several at once, with a progress bar."""
    with Progress(title, len(entries), "shards") as progress, ThreadPoolExecutor(threads) as pool:
        results = []
        for result in pool.map(work, entries):
            results.append(result)
            progress.advance()
        return results


def all_records(folder: Path) -> list[ShardRecord]:
    """Return the records in a shard folder that can be read, in the order of their files."""
    paths = (path for split in SPLITS for path in sorted((folder / split).glob("*.json")))
    return [record for record in map(read_record, paths) if record is not None]


def _without_record(folder: Path, known: set[str]) -> Iterator[Fault]:
    for split in SPLITS:
        for file in sorted((folder / split).glob("*.arrow")):
            path = f"{split}/{file.name}"
            if path not in known:
                yield Fault(path, "its record cannot be read", path)


def shard_fault(folder: Path, entry: ShardEntry) -> Fault | None:
    """Return what is wrong with a shard of a folder, None if every byte is right."""
    what, path = None, folder / entry.path
    try:
        size = path.stat().st_size
        if size != entry.size_bytes:
            what = f"has {size} bytes; {entry.size_bytes} are recorded"
        elif file_sha256(path) != entry.sha256:
            what = "its sha256 is not the recorded one"
    except FileNotFoundError:
        what = "is missing"
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    return Fault(entry.path, what, entry.path, entry.sha256) if what else None


def _object_fault(store: RemoteFolder, entry: ShardEntry) -> Fault | None:
    file = store / entry.path
    size = file.size()
    if size is None:
        what = "is missing"
    elif size != entry.size_bytes:
        what = f"has {size} bytes; the manifest says {entry.size_bytes}"
    elif file.sha256() != entry.sha256:
        what = "its sha256 is not the manifest's"
    else:
        return None
    return Fault(entry.path, what, entry.path, entry.sha256)


def _agrees(folder: Path, fault: Fault) -> bool:
    """Return whether a shard is what its record says, though not what the manifest says."""
    record = read_record(folder / PurePosixPath(fault.shard).with_suffix(RECORD_SUFFIX))
    if record is None or record.shard.sha256 == fault.sha256:
        return False
    return record.shard.path == fault.shard and shard_fault(folder, record.shard) is None


def _record_faults(folder: Path, track: TrackEntry) -> list[Fault]:
    """Compare the records of a track with the manifest; where there are none, none are missed."""
    records, faults = [], []
    for number, shard in enumerate(track.shards):
        name = str(PurePosixPath(shard.path).with_suffix(RECORD_SUFFIX))
        if not (folder / name).exists():
            continue
        record = read_record(folder / name)
        if record is None or (record.shard, record.number) != (shard, number):
            faults.append(Fault(name, "is damaged, or another shard's", shard.path, shard.sha256))
        else:
            records.append(record)
    if len(records) == len(track.shards) and track_entry(records) != track:
        for shard in track.shards:
            name = str(PurePosixPath(shard.path).with_suffix(RECORD_SUFFIX))
            faults.append(Fault(name, "is not what the manifest says", shard.path, shard.sha256))
    return faults
