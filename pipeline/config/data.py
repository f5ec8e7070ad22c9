"""The settings of songs, shards and windows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from lasaft.config import Settings
from pipeline.config.addresses import check_place

Probability = Annotated[float, Field(ge=0, le=1)]
SYNTHETIC_COUNTS = ("synthetic_train", "synthetic_valid", "synthetic_test")


class DataConfig(Settings):
    """Where songs come from, how they are kept as shards, and how windows are drawn."""

    musdb_root: Path | None = Field(
        default=None, description="MUSDB18, or own tracks (wav, flac, .stem.mp4)"
    )
    musdb_is_wav: bool | None = Field(
        default=None, description="folders of wav or flac, no .stem.mp4 (None: look)"
    )
    shards_dir: Path | str | None = Field(
        default=None, description="shard folder or address (None: <output_dir>/shards)"
    )
    cache_dir: Path | None = Field(
        default=None, description="a node's copies of remote shards (None: ~/.cache/lasaft/shards)"
    )
    cache_gb: float = Field(default=100.0, gt=0, description="most GB of such copies on a node")
    filed_mode: bool = Field(default=True, description="keep the shards for later runs")
    max_frames_per_shard: int = Field(
        default=16384, ge=256, description="STFT frames in one shard file, made by one task"
    )
    dev_mode: bool = Field(default=False, description="a small subset: one track a split")

    synthetic_train: int = Field(
        default=0, ge=0, le=9999, description="synthetic songs for training"
    )
    synthetic_valid: int = Field(
        default=0, ge=0, le=9999, description="synthetic songs for validation"
    )
    synthetic_test: int = Field(
        default=0, ge=0, le=9999, description="synthetic songs for the test"
    )
    synthetic_seconds: float = Field(default=30.0, ge=2, le=3600, description="length of a song")
    synthetic_seed: int = Field(default=0, ge=0, description="seed of the songs")

    draw: Literal["iid", "coverage"] = Field(
        default="iid",
        description="windows drawn independently, or so that an epoch covers every frame",
    )
    remix_probability: Probability = Field(
        default=1.0, description="chance that each source of a mixture has a place of its own"
    )
    gain_probability: Probability = Field(
        default=0.0, description="chance of a random gain a source"
    )
    gain_db: float = Field(
        default=6.0, ge=0, le=40, description="largest random gain, up or down, in dB"
    )
    polarity_probability: Probability = Field(
        default=0.0, description="chance of a sign flip a source"
    )
    channel_swap_probability: Probability = Field(
        default=0.0, description="chance that left and right of a source change places"
    )
    mixup_probability: Probability = Field(
        default=0.0, description="chance that a source is a blend of two windows of it"
    )
    mixup_share: float = Field(
        default=0.5, ge=0, le=1, description="largest share of the second window in a blend"
    )
    val_mixture: Literal["stored", "sum"] = Field(
        default="stored", description="validate on the songs' own mixtures, or the sources' sums"
    )

    @field_validator("shards_dir", mode="plain")
    @classmethod
    def _is_a_place(cls, value: object) -> Path | str | None:
        return check_place("shards_dir", value)
