"""The settings of songs, shards and windows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from lasaft.config import Settings, option
from pipeline.config.addresses import check_place

Probability = Annotated[float, Field(ge=0, le=1)]
Chance = Annotated[float, Field(ge=0)]
Layout = Literal["songs", "stems", "csv", "moisesdb", "slakh"]
# How files become songs, besides where they lie; of synthetic songs nothing of it is needed.
SONG_FORM = ("layout", "resample", "missing_stems", "length_tolerance")
SYNTHETIC_COUNTS = ("synthetic_train", "synthetic_valid", "synthetic_test")


class DataConfig(Settings):
    """Where songs come from, how they are kept as shards, and how windows are drawn."""

    musdb_root: Path | str | None = option(
        None, "MUSDB18 or own tracks (wav, flac, .stem.mp4), a folder or address", role="place"
    )
    musdb_is_wav: bool | None = option(
        None, "folders of wav or flac, no .stem.mp4 (None: look)", role="songs"
    )
    layout: Layout | None = option(
        None, "how the songs lie (None: look): a folder a song, or as a data set", role="songs"
    )
    resample: bool = option(False, "resample files of other rates than sample_rate", role="songs")
    missing_stems: Literal["silence", "skip"] | None = option(
        None, "a stem that a song lacks: silence, or skip the song (None: refuse)", role="songs"
    )
    length_tolerance: float = option(
        0.05, "most seconds between lengths in a song: padded or cut", ge=0, role="songs"
    )
    shards_dir: Path | str | None = option(
        None, "shard folder or address (None: <output_dir>/shards)", role="place"
    )
    cache_dir: Path | None = option(
        None, "a node's copies of what lies at addresses (None: ~/.cache/lasaft)", role="place"
    )
    cache_gb: float = option(
        100.0, "most GB of copies of shards on a node, and of songs", gt=0, role="way"
    )
    filed_mode: bool = option(True, "keep the shards for later runs", role="way")
    max_frames_per_shard: int = option(
        16384, "STFT frames in one shard file, made by one task", ge=256, role="songs"
    )
    phases: int = option(
        1,
        "grids of windows in the shards, hop_length / phases samples apart",
        ge=1,
        le=64,
        role="songs",
    )
    dev_mode: bool = option(False, "a small subset: one track a split", role="songs")

    synthetic_train: int = option(0, "synthetic songs for training", ge=0, le=9999, role="place")
    synthetic_valid: int = option(0, "synthetic songs for validation", ge=0, le=9999, role="place")
    synthetic_test: int = option(0, "synthetic songs for the test", ge=0, le=9999, role="place")
    synthetic_seconds: float = option(30.0, "length of a song", ge=2, le=3600, role="place")
    synthetic_seed: int = option(0, "seed of the songs", ge=0, role="place")

    draw: Literal["iid", "coverage"] = option(
        "iid",
        "windows drawn independently, or so that each frame of each target is one",
        role="draw",
    )
    set_sizes: tuple[Chance, ...] | None = option(
        None,
        "multi_hot: chances of targets of 1, 2, 3 ... sources (None: each half of the one before)",
        role="draw",
    )
    silent_target_weight: Probability = option(
        1.0, "how often songs without the target are drawn for it, against the others", role="draw"
    )
    remix_probability: Probability = option(
        1.0, "chance that each source of a mixture has a place of its own", role="draw"
    )
    gain_probability: Probability = option(0.0, "chance of a random gain a source", role="draw")
    gain_db: float = option(6.0, "largest random gain, up or down, in dB", ge=0, le=40, role="draw")
    polarity_probability: Probability = option(0.0, "chance of a sign flip a source", role="draw")
    channel_swap_probability: Probability = option(
        0.0, "chance that left and right of a source change places", role="draw"
    )
    mixup_probability: Probability = option(
        0.0, "chance that a source is a blend of two windows of it", role="draw"
    )
    mixup_share: float = option(
        0.5, "largest share of the second window in a blend", ge=0, le=1, role="draw"
    )
    val_mixture: Literal["stored", "sum"] = option(
        "stored", "validate on the songs' own mixtures, or the sources' sums", role="task"
    )

    @field_validator("musdb_root", "shards_dir", mode="plain")
    @classmethod
    def _is_a_place(cls, value: object, info: ValidationInfo) -> Path | str | None:
        return check_place(str(info.field_name), value)
