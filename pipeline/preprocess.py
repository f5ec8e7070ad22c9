"""The first stage: MUSDB18 to spectrogram shards, a Ray task a track."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lasaft.errors import ConfigError, DataError, StageError
from pipeline.build import Outcome, build_track, read_record, record_path
from pipeline.config import RunConfig
from pipeline.fanout import Needs, run_tasks
from pipeline.folders import RunFolder
from pipeline.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardSettings,
    TrackEntry,
    read_manifest,
    write_manifest,
)
from pipeline.progress import Progress
from pipeline.tracks import SPLITS, Track, check_tracks, list_tracks


def preprocess(config: RunConfig) -> Manifest:
    """Turn every track into shards and publish their manifest; finished tracks are kept.

    Ray must be connected. All tracks are checked by their headers before any work starts.

    Raises:
        DataError: the data set or some tracks are faulty (lists every fault).
        ConfigError: the shard folder was made with other settings, or is in use.
        StageError: a track failed, or the disk is too small; no manifest is published, the
            finished tracks are kept, and the same call goes on from there.
    """
    folders, settings = RunFolder.of(config), ShardSettings.of(config)
    data = config.data
    tracks = list_tracks(
        folders.songs, sources=settings.sources, is_wav=data.musdb_is_wav, dev_mode=data.dev_mode
    )
    samples = check_tracks(tracks, sample_rate=settings.sample_rate, channels=settings.channels)
    with _alone(folders.shards):
        _refuse_other_settings(folders.shards, settings)
        _remove_leftovers(folders.shards)
        _require_space(folders.shards, settings, tracks, samples)
        entries = _fan_out(tracks, settings, folders.shards, config)
        try:
            return write_manifest(folders.shards, entries, settings)
        except OSError as error:
            raise StageError(
                f"shards_dir {folders.shards}: the manifest cannot be written ({error.strerror}); "
                "the shards are kept: run the same command again"
            ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two runs on it at once would remove each other's temporaries."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"shards_dir: cannot write in {folder} ({error.strerror}); allowed: a folder of yours"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"shards_dir: another preprocess works in {folder}; wait for it, or choose "
                "another folder"
            ) from None
        yield


def _refuse_other_settings(folder: Path, settings: ShardSettings) -> None:
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


def _settings_of(folder: Path) -> ShardSettings | None:
    """Return what the shards of a folder were made with, None if there are none."""
    if (folder / MANIFEST_NAME).exists():
        with suppress(DataError):  # a damaged manifest is made anew, from the records
            return read_manifest(folder).settings
    records = (path for split in SPLITS for path in sorted((folder / split).glob("*.json")))
    found = (read_record(path) for path in records)
    return next((record.settings for record in found if record is not None), None)


def _remove_leftovers(folder: Path) -> None:
    for place in (folder, *(folder / split for split in SPLITS)):
        for leftover in place.glob(".*.tmp-*"):
            leftover.unlink(missing_ok=True)


def needed_bytes(
    folder: Path, settings: ShardSettings, tracks: Sequence[Track], samples: Sequence[int]
) -> int:
    """Return about how many bytes the shards of the tracks without a record will take."""
    frames = sum(
        settings.frames(count)
        for track, count in zip(tracks, samples, strict=True)
        if not record_path(folder, track).exists()
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


def _fan_out(
    tracks: Sequence[Track], settings: ShardSettings, folder: Path, config: RunConfig
) -> list[TrackEntry]:
    """Build all tracks, a task each; a full disk ends it at once."""
    seconds, start = 0.0, time.monotonic()

    def count(name: str, outcome: Outcome) -> None:
        nonlocal seconds
        if outcome.entry is None:
            raise StageError(
                f"shards_dir {folder}: the disk is full at {name}; make room and run the same "
                "command: it goes on from here"
            )
        seconds += outcome.seconds
        rate = seconds / max(time.monotonic() - start, 1e-9)
        progress.advance(note=f"{rate:.1f} s of audio/s")

    with Progress("preprocess", len(tracks), "tracks") as progress:
        outcomes = run_tasks(
            build_track,
            [(track, settings, folder) for track in tracks],
            names=[str(track) for track in tracks],
            needs=Needs(memory_bytes=int(config.cluster.task_memory * 1e9)),
            on_done=count,
        )
    return [outcome.entry for outcome in outcomes]
