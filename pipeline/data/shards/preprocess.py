"""The first stage: songs to spectrogram shards, a Ray task a track, several for a long one."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from lasaft.errors import ConfigError, DataError, StageError
from pipeline.cluster.fanout import Needs, run_tasks
from pipeline.cluster.locks import alone
from pipeline.cluster.parcels import parcel
from pipeline.cluster.progress import Progress, say
from pipeline.cluster.shared_storage import require_writable_address
from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.build import RECORD_SUFFIX, Outcome, Work, build_shards, shard_name
from pipeline.data.shards.framing import parts_of
from pipeline.data.shards.inspect import all_records
from pipeline.data.shards.manifest import (
    Manifest,
    ShardRecord,
    ShardSettings,
    TrackEntry,
    read_manifest,
    track_entry,
    write_manifest,
)
from pipeline.data.shards.upload import upload_shards
from pipeline.data.songs.checks import examine_tracks, refuse_faults
from pipeline.data.songs.make import fetch_songs
from pipeline.data.songs.splits import SPLITS
from pipeline.data.songs.tracks import Track, list_tracks, listing_notes
from pipeline.data.songs.wanted import Wanted

STAGED = ".repair"  # in the shard folder: where a repair builds damaged tracks


def preprocess(config: RunConfig) -> Manifest:
    """Turn every track into shards and publish their manifest; finished shards are kept.

    Ray must be connected. All tracks are checked before any work starts; the samples of those
    that have records were looked at when these were made.

    Raises:
        DataError: the data set or some tracks are faulty (lists every fault).
        ConfigError: the shard folder was made with other settings, or is in use.
        StageError: a track failed, or the disk is too small; no manifest is published, the
            finished shards are kept, and the same call goes on from there.
    """
    folders, settings = RunFolder.of(config), ShardSettings.of(config)
    store = None
    if folders.shards_address is not None:
        store = RemoteFolder(folders.shards_address)
        if config.data.shards_dir is not None:  # else the run itself is there, which was written to
            require_writable_address("shards_dir", store.address)
    fetch_songs(config)
    wanted = Wanted.of(config.model, config.data)
    tracks = list_tracks(folders.songs, wanted)
    for note in listing_notes(folders.songs, wanted):
        say(f"preprocess: {note}")
    recorded = _recorded(folders.shards, store)
    found = examine_tracks(
        tracks,
        root=folders.songs,
        listen=lambda track: _record_name(track) not in recorded,
        config=config,
    )
    refuse_faults(tracks, found)
    samples = [findings.samples for findings in found]
    if settings.phases > 1:
        size = needed_bytes(folders.shards, settings, tracks, samples) / 1e9
        times = len(settings.columns) / len(settings.streams)
        say(
            f"preprocess: {settings.phases} grids of windows: {size:.2f} GB are still to be made, "
            f"{times:g} times as many as with one"
        )
    with alone_in_shards(config):
        for place in (folders.shards, *([] if store is None else [store])):
            _refuse_other_settings(place, settings)
        entries = build_tracks(config, folders.shards, settings, tracks, samples, store=store)
        try:
            manifest = write_manifest(folders.shards, entries, settings)
        except OSError as error:
            raise StageError(
                f"shards_dir {folders.shards}: the manifest cannot be written ({error.strerror}); "
                "the shards are kept: run the same command again"
            ) from error
        if store is not None:
            upload_shards(folders.shards, store, manifest)
        return manifest


def alone_in_shards(config: RunConfig) -> AbstractContextManager[None]:
    """Be the only command that writes to a run's shard folder.

    The folder that somebody has named may be a link; what is made in it may not.
    """
    folder = RunFolder.of(config).shards
    written = [folder / name for name in (*SPLITS, STAGED)]
    named = config.data.shards_dir is not None
    return alone(folder, "shards_dir", written if named else [folder, *written])


def build_tracks(
    config: RunConfig,
    folder: Path,
    settings: ShardSettings,
    tracks: Sequence[Track],
    samples: Sequence[int],
    *,
    title: str = "preprocess",
    store: RemoteFolder | None = None,
) -> list[TrackEntry]:
    """Build the shards of tracks, a task each or several, and return the entry of each track.

    The headers of the tracks are right, ``samples`` are their lengths. Finished shards are kept.
    Only for the holder of the folder's lock. Each task takes its shards to ``store``, if given.

    Raises:
        StageError: a track failed, or the disk is too small; finished shards are kept.
    """
    remove_leftovers(folder)
    stays = RunFolder.of(config).address is None
    if stays:
        _require_space(folder, settings, tracks, samples)
    works = [
        work
        for track, count in zip(tracks, samples, strict=True)
        for work in works_of(track, count, settings, folder)
    ]
    if store is not None:
        works = [replace(work, store=store, stays=stays) for work in works]
    entries = _build_all(works, folder, config, title)
    remove_leftovers(folder)  # of tasks that were killed and tried again
    return entries


def works_of(track: Track, samples: int, settings: ShardSettings, folder: Path) -> list[Work]:
    """Return the tasks of a track: one for each shard, but one ffmpeg pass for a .stem.mp4."""
    parts = parts_of(samples, settings) if track.is_wav else []
    if len(parts) < 2:
        return [Work(track, settings, folder, parts[0] if parts else None, name=str(track))]
    count = len(parts)
    return [
        Work(track, settings, folder, part, name=f"{track} (part {part.number + 1} of {count})")
        for part in parts
    ]


def _refuse_other_settings(folder: Path | RemoteFolder, settings: ShardSettings) -> None:
    found = _settings_of(folder)
    if found is None or found == settings:
        return
    raise ConfigError(
        [
            f"{name}: got {asked}; the shards in {folder} were made with {made}; choose another "
            "shards_dir, or delete that folder"
            for name, made, asked in found.differences(settings)
        ]
    )


def _settings_of(folder: Path | RemoteFolder) -> ShardSettings | None:
    """Return what the shards of a folder were made with, None if there are none."""
    with suppress(DataError):  # a missing or damaged manifest is made anew, from the records
        return read_manifest(folder).settings
    records = all_records(folder) if isinstance(folder, Path) else []
    return next((record.settings for record in records), None)


def _recorded(folder: Path, store: RemoteFolder | None = None) -> set[str]:
    """Return the names of all records, in the folder and in the store."""
    paths = (path for split in SPLITS for path in (folder / split).glob(f"*{RECORD_SUFFIX}"))
    there = store.listing() if store is not None else {}
    return {path.relative_to(folder).as_posix() for path in paths} | there.keys()


def _record_name(track: Track) -> str:
    """Return the name of a track's first record."""
    name = PurePosixPath(shard_name(track.split, track.name, 0))
    return str(name.with_suffix(RECORD_SUFFIX))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed tasks left half written; only for the holder of the lock."""
    shutil.rmtree(folder / STAGED, ignore_errors=True)
    for place in (folder, *(folder / split for split in SPLITS)):
        for leftover in place.glob(".*.tmp-*"):
            leftover.unlink(missing_ok=True)


def needed_bytes(
    folder: Path, settings: ShardSettings, tracks: Sequence[Track], samples: Sequence[int]
) -> int:
    """Return about how many bytes the shards of the tracks without a record will take."""
    recorded = _recorded(folder)
    frames = sum(
        settings.frames(count)
        for track, count in zip(tracks, samples, strict=True)
        if _record_name(track) not in recorded
    )
    return frames * settings.row_bytes * len(settings.columns)


def _require_space(
    folder: Path, settings: ShardSettings, tracks: Sequence[Track], samples: Sequence[int]
) -> None:
    needed, free = needed_bytes(folder, settings, tracks, samples), shutil.disk_usage(folder).free
    if needed > free:
        raise StageError(
            f"shards_dir {folder}: the shards need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are "
            "free; make room or choose another shards_dir"
        )


def _build_all(
    works: Sequence[Work], folder: Path, config: RunConfig, title: str
) -> list[TrackEntry]:
    """Do all works, a task each, and return the entries of their tracks."""
    left = Counter(str(work.track) for work in works)
    owners = {work.name: str(work.track) for work in works}
    seconds, start = 0.0, time.monotonic()

    def count(name: str, outcome: Outcome) -> None:
        nonlocal seconds
        if outcome.records is None:  # all other tasks would end in the same way
            raise StageError(
                f"shards_dir {folder}: the disk is full at {name}; make room and run the same "
                "command: it goes on from here"
            )
        left[owners[name]] -= 1
        seconds += 0 if outcome.reused else outcome.seconds
        rate = seconds / max(time.monotonic() - start, 1e-9)
        progress.advance(left[owners[name]] == 0, note=f"{rate:.1f} s of audio/s")

    with Progress(title, len(left), "tracks") as progress:
        outcomes = run_tasks(
            build_shards,
            [(work,) for work in works],
            names=[work.name for work in works],
            needs=Needs.of(config),
            parcels=[parcel(RunFolder.of(config), reads=[work.track.path]) for work in works],
            on_done=count,
        )
    records: dict[str, list[ShardRecord]] = {}
    for work, outcome in zip(works, outcomes, strict=True):
        records.setdefault(str(work.track), []).extend(outcome.records)
    return [track_entry(found) for found in records.values()]
