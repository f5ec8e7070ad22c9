"""Finds damaged shards and builds those alone again, to the bytes that they had."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lasaft.errors import ConfigError, DataError, StageError
from pipeline.cluster.fanout import run_tasks
from pipeline.cluster.progress import Progress
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.build import Outcome, Work, build_shards, file_stem
from pipeline.data.shards.framing import parts_of
from pipeline.data.shards.inspect import Fault, Inspection, all_records, inspect_shards
from pipeline.data.shards.manifest import (
    MANIFEST_NAME,
    ShardRecord,
    ShardSettings,
    track_entry,
    write_manifest,
)
from pipeline.data.shards.preprocess import alone, needs_of, remove_leftovers, require_disk
from pipeline.data.songs.checks import examine_tracks, refuse_faults
from pipeline.data.songs.tracks import Track, list_tracks

_AGAIN = "run python -m jobs.preprocess with the options that the shards were made with"
_HASH_LINE = re.compile(rb'\{\n"hash": "([^"]*)",\n')


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        before: the folder as it was.
        after: the folder as it is now, without a fault.
    """

    before: Inspection
    after: Inspection


def verify_shards(folder: Path) -> Inspection:
    """Read a shard folder again, with a progress bar; see :func:`inspect_shards`."""
    bar: Progress | None = None

    def count(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or Progress("verify", total, "shards")
        bar.advance()

    try:
        return inspect_shards(folder, count)
    finally:
        if bar is not None:
            bar.close()


def repair_shards(config: RunConfig, before: Inspection) -> Repair:
    """Build the damaged shards again, rewrite a damaged manifest, and verify everything.

    Ray must be connected. The settings are those of the shards, whatever ``config`` says.

    Args:
        config: says where the songs and the shards are.
        before: what :func:`verify_shards` found.

    Raises:
        ConfigError: there are no songs, or another run works in the folder.
        DataError: tracks that are needed are missing or faulty.
        StageError: a shard cannot be built as it was; the others are repaired.
    """
    folders = RunFolder.of(config)
    folder = folders.shards
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
    with alone(folder):
        remove_leftovers(folder)
        damaged = {fault.shard: fault for fault in before.faults if fault.shard}
        if damaged:
            _rebuild(_works(config, before.settings, folders, list(damaged.values())), config)
            remove_leftovers(folder)  # of tasks that were killed and tried again
        if before.manifest is None:
            _rewrite_manifest(folder, before.settings)
        after = verify_shards(folder)
    if after.faults:
        raise StageError("\n  ".join(["the repaired shards are damaged again:",
                                      *map(str, after.faults)]))  # fmt: skip
    return Repair(before, after)


def _works(
    config: RunConfig, settings: ShardSettings, folders: RunFolder, faults: Sequence[Fault]
) -> list[Work]:
    wanted: dict[tuple[str, str], dict[int, str | None]] = {}
    for fault in faults:
        path = PurePosixPath(fault.shard)
        stem, _, number = path.stem.rpartition(".")
        wanted.setdefault((path.parent.name, stem), {})[int(number)] = fault.sha256
    listed = list_tracks(folders.songs, sources=settings.sources, is_wav=config.data.musdb_is_wav)
    found = {(track.split, file_stem(track.name)): track for track in listed}
    missing = [f"{split}/{stem}" for split, stem in wanted if (split, stem) not in found]
    if missing:
        raise DataError(
            f"musdb_root {folders.songs}: holds no track {', '.join(missing)}; allowed: the songs "
            "that the shards were made from"
        )
    tracks = [found[key] for key in wanted]
    findings = examine_tracks(
        tracks, root=folders.songs, sample_rate=settings.sample_rate, channels=settings.channels,
        listen=lambda track: False,
    )  # fmt: skip
    refuse_faults(tracks, findings)
    works: list[Work] = []
    for track, findings_, numbers in zip(tracks, findings, wanted.values(), strict=True):
        works += _works_of(track, findings_.samples, settings, folders.shards, numbers)
    return works


def _works_of(
    track: Track, samples: int, settings: ShardSettings, folder: Path,
    numbers: dict[int, str | None],
) -> list[Work]:  # fmt: skip
    if not track.is_wav:
        return [Work(track, settings, folder, wanted=numbers, name=str(track))]
    parts = {part.number: part for part in parts_of(samples, settings)}
    if not numbers.keys() <= parts.keys():
        raise DataError(f"{track}: is shorter than its shards; run python -m jobs.preprocess")
    return [
        Work(track, settings, folder, parts[number], {number: sha256}, f"{track} part {number}")
        for number, sha256 in numbers.items()
    ]


def _rebuild(works: Sequence[Work], config: RunConfig) -> None:
    with Progress("repair", len(works), "shards") as progress:

        def count(name: str, outcome: Outcome) -> None:
            require_disk(works[0].folder, name, outcome)
            progress.advance()

        run_tasks(
            build_shards,
            [(work,) for work in works],
            names=[work.name for work in works],
            needs=needs_of(config),
            on_done=count,
        )


def _rewrite_manifest(folder: Path, settings: ShardSettings) -> None:
    """Write the manifest that the records give, and compare it with the damaged one."""
    groups: dict[tuple[str, str], list[ShardRecord]] = {}
    for record in sorted(all_records(folder), key=lambda record: record.number):
        groups.setdefault((record.split, record.name), []).append(record)
    for (split, name), group in groups.items():
        frames = sum(record.shard.frames for record in group)
        if frames != settings.frames(group[0].samples):
            raise StageError(f"{split}/{name}: a shard and its record are both lost; {_AGAIN}")
    damaged = (folder / MANIFEST_NAME).read_bytes()
    manifest = write_manifest(folder, [track_entry(group) for group in groups.values()], settings)
    said = _HASH_LINE.match(damaged)
    if said is None or said[1].decode() == manifest.hash:
        return
    new = (folder / MANIFEST_NAME).read_bytes()
    if new[said.end() :] != damaged[said.end() :]:  # else only the hash was damaged
        raise StageError(
            f"{folder / MANIFEST_NAME}: made anew from the records, it has the hash "
            f"{manifest.hash[:12]}; the damaged one said {said[1].decode()[:12]}, so tracks may be "
            f"lost; {_AGAIN}"
        )
