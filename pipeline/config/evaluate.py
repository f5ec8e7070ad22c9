"""The settings of an evaluation: what is separated and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lasaft.config import Settings


class EvaluateConfig(Settings):
    """Separation and scoring of whole tracks."""

    checkpoint: Path | None = Field(
        default=None, description="checkpoint folder (None: <output_dir>/checkpoint)"
    )
    split: Literal["train", "valid", "test"] = Field(default="test", description="which tracks")
    overlap_ratio: float = Field(
        default=0.5, ge=0, le=0.5, description="overlap of separation chunks"
    )
    save_estimates: Literal["none", "wav", "flac", "mp3"] = Field(
        default="none", description="keep the separated songs"
    )
    verify: int = Field(default=0, ge=0, description="tracks scored again with museval itself")
    oracles: bool = Field(
        default=False, description="score ideal ratio and binary masks too: upper bounds"
    )
    estimates_dir: Path | None = Field(
        default=None, description="score <split>/<track>/<source>.wav here, not a checkpoint"
    )
    scores_dir: Path | None = Field(
        default=None,
        description="put another system's museval files <split>/<track>.json here on the board",
    )
    scenario: Literal["sources", "vocals_accompaniment"] = Field(
        default="sources",
        description="sources against each other, or vocals against accompaniment as well",
    )
    report_audio: int = Field(
        default=1, ge=0, le=20, description="songs with players in the report"
    )
