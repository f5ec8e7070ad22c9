"""Small shard folders, built in this process, for tests that read shards."""

from __future__ import annotations

from pathlib import Path

from lasaft.config import ModelConfig
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.build import Work, build_shards
from pipeline.data.shards.manifest import Manifest, ShardSettings, track_entry, write_manifest
from pipeline.data.shards.preprocess import works_of
from pipeline.data.songs.checks import check_tracks
from pipeline.data.songs.tracks import list_tracks
from pipeline.data.songs.wanted import Wanted


def small_config(songs: Path, output: Path, *, train: TrainConfig | None = None) -> RunConfig:
    """Return settings for shards with few bins: n_fft 512, hop 256, windows of 16 frames."""
    return RunConfig(
        output_dir=output,
        model=ModelConfig(n_fft=512, hop_length=256, num_frame=16, n_blocks=3),
        data=DataConfig(musdb_root=songs),
        train=train or TrainConfig(batch_size=4, steps_per_epoch=6, seed=1),
    )


def works_by_track(config: RunConfig) -> list[list[Work]]:
    """Return the tasks that make the shards that ``config`` asks for, a list for each track."""
    folders, settings = RunFolder.of(config), ShardSettings.of(config)
    tracks = list_tracks(folders.songs, Wanted.of(config.model, config.data))
    samples = check_tracks(tracks, root=folders.songs)
    return [
        works_of(track, count, settings, folders.shards)
        for track, count in zip(tracks, samples, strict=True)
    ]


def make_shards(config: RunConfig) -> Manifest:
    """Build the shards that ``config`` asks for, as preprocess does but without Ray."""
    entries = []
    for works in works_by_track(config):
        records = []
        for work in works:
            outcome = build_shards(work)
            assert outcome.records is not None
            records.extend(outcome.records)
        entries.append(track_entry(records))
    return write_manifest(RunFolder.of(config).shards, entries, ShardSettings.of(config))
