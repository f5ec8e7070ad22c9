"""Small shard folders, built in this process, for tests that read shards."""

from __future__ import annotations

import json
from pathlib import Path

from lasaft.config import ModelConfig
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.build import build_shards
from pipeline.data.shards.inspect import all_records
from pipeline.data.shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    ShardSettings,
    track_entry,
    write_manifest,
)
from pipeline.data.shards.preprocess import works_of
from pipeline.data.songs.checks import check_tracks
from pipeline.data.songs.tracks import list_tracks


def small_config(songs: Path, output: Path, *, train: TrainConfig | None = None) -> RunConfig:
    """Return settings for shards with few bins: n_fft 512, hop 256, windows of 16 frames."""
    return RunConfig(
        output_dir=output,
        model=ModelConfig(n_fft=512, hop_length=256, num_frame=16, n_blocks=3),
        data=DataConfig(musdb_root=songs),
        train=train or TrainConfig(batch_size=4, steps_per_epoch=6, seed=1),
    )


def make_shards(config: RunConfig) -> Manifest:
    """Build the shards that ``config`` asks for, as preprocess does but without Ray."""
    folders, settings = RunFolder.of(config), ShardSettings.of(config)
    tracks = list_tracks(folders.songs, sources=settings.sources)
    samples = check_tracks(
        tracks, root=folders.songs, sample_rate=settings.sample_rate, channels=settings.channels
    )
    entries = []
    for track, count in zip(tracks, samples, strict=True):
        records = []
        for work in works_of(track, count, settings, folders.shards):
            outcome = build_shards(work)
            assert outcome.records is not None
            records.extend(outcome.records)
        entries.append(track_entry(records))
    return write_manifest(folders.shards, entries, settings)


def as_format_1(folder: Path) -> Manifest:
    """Make records and manifest of a shard folder what they were when they told of loudness."""
    tracks: dict[str, list[ShardRecord]] = {}
    for record in all_records(folder):
        one = {"peak": 0.5, "energy": record.number + 2.0}
        loudness = {column: dict(one) for column in record.settings.columns}
        old = record.model_copy(update={"loudness": loudness})
        path = (folder / record.shard.path).with_suffix(".json")
        path.write_text(json.dumps(old.model_dump(mode="json"), indent=2) + "\n")
        tracks.setdefault(record.name, []).append(old)
    (folder / MANIFEST_NAME).unlink()
    entries = [track_entry(records) for records in tracks.values()]
    manifest = write_manifest(folder, entries, next(iter(tracks.values()))[0].settings)
    assert manifest.format == 1
    return manifest
