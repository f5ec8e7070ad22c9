"""Damaged shards built or copied again, to the bytes that they had."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lasaft.errors import ConfigError, DataError, StageError
from lasaft.files import atomic_write_bytes, read_steadily
from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.build import RECORD_SUFFIX, read_record, shard_name
from pipeline.data.shards.inspect import (
    Inspection,
    all_records,
    inspect_shards,
    inspect_store,
    shard_fault,
)
from pipeline.data.shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    TrackEntry,
    manifest_text,
    read_manifest,
    track_entry,
)
from pipeline.data.shards.objects import MARK_SUFFIX
from pipeline.data.shards.preprocess import (
    STAGED,
    alone_in_shards,
    build_tracks,
    preprocess,
    remove_leftovers,
)
from pipeline.data.shards.upload import upload_shards
from pipeline.data.songs.checks import check_tracks
from pipeline.data.songs.make import fetch_songs
from pipeline.data.songs.tracks import list_tracks
from pipeline.data.songs.wanted import Wanted

_AGAIN = "run python -m jobs.preprocess with the options that the shards were made with"
_HASH_LINE = re.compile(rb'\{\n"hash": "([^"]*)",\n')

Tracks = dict[str, TrackEntry]  # by what the paths of a track's shards begin with


def repair_shards(config: RunConfig, before: Inspection) -> Inspection:
    """Build the damaged shards again, rewrite a damaged manifest, and return the inspection of all.

    Ray must be connected. The settings are those of the shards, whatever ``config`` says. The
    damaged tracks are built beside the shards, and nothing is changed unless the manifest's hash
    is the one that it was.

    Raises:
        ConfigError: there are no songs, or another run works in the folder.
        DataError: tracks that are needed are missing or faulty.
        StageError: the shards cannot be built as they were.
    """
    folders = RunFolder.of(config)
    folder, settings = folders.shards, before.settings
    if not folders.songs.is_dir():
        raise ConfigError(
            f"musdb_root: {folders.songs} is no folder; allowed: the songs that the shards in "
            f"{folder} were made from"
        )
    if before.manifest is not None and any(fault.path == MANIFEST_NAME for fault in before.faults):
        raise StageError(
            f"{folder / MANIFEST_NAME}: is not of these shards, and nothing says which is right; "
            f"{_AGAIN}: it keeps the shards that are of the songs, and publishes their manifest"
        )
    with alone_in_shards(config):
        remove_leftovers(folder)
        known = _known_tracks(folder, before)
        damaged = {_stem(fault.shard) for fault in before.faults if fault.shard}
        # Where the manifest is damaged, some records of a track may be lost with their shards.
        damaged |= {k for k, v in known.items() if v.frames != settings.frames(v.samples)}
        try:
            built = _build(config, before, damaged)
            manifest = Manifest.of(settings, (known | built).values())
            _refuse_other_shards(folder, known, manifest)
            _take_over(folder / STAGED, folder)
            if before.manifest is None:
                atomic_write_bytes(folder / MANIFEST_NAME, manifest_text(manifest).encode())
        finally:
            shutil.rmtree(folder / STAGED, ignore_errors=True)
        return _sound(inspect_shards(folder))


def repair_store(config: RunConfig, store: RemoteFolder, before: Inspection) -> Inspection:
    """Put the damaged shards into the store again, and inspect all.

    They are copied from the folder in which they were made, or built anew where none was kept.

    Raises:
        DataError: that folder does not hold the same shards any more, or they are damaged too.
        StageError: the store gives other bytes than it took, or other shards were built.
    """
    folder = RunFolder.of(config)
    if folder.address is not None:
        return _build_in_store(config, store, before)
    return _copy_to_store(folder.shards, store, before)


def _build_in_store(config: RunConfig, store: RemoteFolder, before: Inspection) -> Inspection:
    assert before.manifest is not None
    _distrust(store, before)
    manifest = preprocess(config)
    if manifest.hash != before.manifest.hash:
        raise StageError(
            f"{store}: holds other shards now (hash {manifest.hash[:12]}) than before "
            f"({before.manifest.hash[:12]}): the songs are others, or another torch built them"
        )
    return _sound(inspect_store(store))


def _copy_to_store(folder: Path, store: RemoteFolder, before: Inspection) -> Inspection:
    manifest = read_manifest(folder)
    assert before.manifest is not None
    if manifest.hash != before.manifest.hash:
        raise DataError(
            f"{folder}: holds other shards (hash {manifest.hash[:12]}) than {store} "
            f"({before.manifest.hash[:12]}); run python -m jobs.preprocess as for those"
        )
    _distrust(store, before)
    upload_shards(folder, store, manifest)
    return _sound(inspect_store(store))


def _distrust(store: RemoteFolder, before: Inspection) -> None:
    """Remove the marks of damaged shards: without one, a shard counts as not there."""
    for fault in before.faults:
        mark = store / f"{fault.shard}{MARK_SUFFIX}"
        if mark.size() is not None:
            mark.delete()


def _sound(after: Inspection) -> Inspection:
    if after.faults:
        lines = ["the repaired shards are damaged again:", *map(str, after.faults)]
        raise StageError("\n  ".join(lines))
    return after


def _stem(shard: str) -> str:
    """Return what the paths of all shards of a track begin with."""
    return shard.rsplit(".", 2)[0]


def _by_stem(tracks: Iterable[TrackEntry]) -> Tracks:
    return {_stem(track.shards[0].path): track for track in tracks}


def _known_tracks(folder: Path, before: Inspection) -> Tracks:
    """Return the tracks as the manifest has them, or where it is damaged, the records."""
    if before.manifest is not None:
        return _by_stem(before.manifest.tracks)
    groups: dict[str, list[ShardRecord]] = {}
    for record in sorted(all_records(folder), key=lambda record: record.number):
        groups.setdefault(_stem(record.shard.path), []).append(record)
    return _by_stem(map(track_entry, groups.values()))


def _build(config: RunConfig, before: Inspection, damaged: set[str]) -> Tracks:
    """Build the damaged tracks beside the shards."""
    if not damaged:
        return {}
    folders, settings = RunFolder.of(config), before.settings
    fetch_songs(config)
    # What was built is compared with what the records say, so that nothing need be refused here.
    wanted = Wanted(
        settings.sources,
        settings.sample_rate,
        settings.channels,
        is_wav=config.data.musdb_is_wav,
        layout=config.data.layout,
        resample=True,
        missing_stems="silence",
        length_tolerance=math.inf,
    )
    listed = list_tracks(folders.songs, wanted)
    found = {_stem(shard_name(track.split, track.name, 0)): track for track in listed}
    missing = sorted(damaged - found.keys())
    if missing:
        raise DataError(
            f"musdb_root {folders.songs}: holds no track {', '.join(missing)}; allowed: the songs "
            "that the shards were made from"
        )
    tracks = [found[stem] for stem in sorted(damaged)]
    samples = check_tracks(tracks, root=folders.songs, config=config)
    staged = folders.shards / STAGED
    staged.mkdir()
    return _by_stem(build_tracks(config, staged, settings, tracks, samples, title="repair"))


def _refuse_other_shards(folder: Path, known: Tracks, new: Manifest) -> None:
    """Compare what was built with the records, and the manifest with what is left of it."""
    recorded = {shard.path: shard for track in known.values() for shard in track.shards}
    shards = [shard for track in new.tracks for shard in track.shards]
    changed = [shard.path for shard in shards if recorded.get(shard.path, shard) != shard]
    if changed:
        raise StageError(
            f"{', '.join(changed)}: was built again, and its sha256 is not the recorded one "
            "(changed songs, another kind of processor or another torch); python -m "
            "jobs.preprocess takes what there is now as new data"
        )
    damaged, text = read_steadily(folder / MANIFEST_NAME), manifest_text(new).encode()
    said = _HASH_LINE.match(damaged)
    if said is None or said[1] == new.hash.encode():
        return
    if text[said.end() :] != damaged[said.end() :]:  # else only the hash was damaged
        raise StageError(
            f"{folder / MANIFEST_NAME}: made anew, it has the hash {new.hash[:12]}; the one there "
            f"says {said[1].decode(errors='replace')[:12]}, so tracks may be lost; {_AGAIN}"
        )


def _take_over(staged: Path, folder: Path) -> None:
    """Move the shards of ``staged`` to the folder, and their records, where those are not right."""
    for record in all_records(staged):
        if shard_fault(folder, record.shard) is not None:
            (staged / record.shard.path).replace(folder / record.shard.path)
        path = PurePosixPath(record.shard.path).with_suffix(RECORD_SUFFIX)
        if read_record(folder / path) != record:
            (staged / path).replace(folder / path)
