"""The settings of an evaluation: what is separated and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationInfo, field_validator

from lasaft.config import Settings, option
from pipeline.config.addresses import check_place


class EvaluateConfig(Settings):
    """Separation and scoring of whole tracks."""

    checkpoint: Path | str | None = option(
        None, "checkpoint, a folder or address (None: <output_dir>/checkpoint)", role="place"
    )
    split: Literal["train", "valid", "test"] = option("test", "which tracks")
    overlap_ratio: float = option(0.5, "overlap of separation chunks", ge=0, le=0.5)
    save_estimates: Literal["none", "wav", "flac", "mp3"] = option(
        "none", "keep the separated songs"
    )
    verify: int = option(0, "tracks scored again with museval itself", ge=0)
    oracles: bool = option(False, "score ideal ratio and binary masks too: upper bounds")
    estimates_dir: Path | str | None = option(
        None, "score <split>/<track>/<source>.wav here, not a checkpoint", role="place"
    )
    scores_dir: Path | str | None = option(
        None,
        "put another system's museval files <split>/<track>.json here on the board",
        role="place",
    )
    scores_kind: Literal["system", "oracle", "mixture"] = option(
        "system", "what made the scores in scores_dir; oracles and the mixture do not compete"
    )
    scores_data: Literal["MUSDB18", "MUSDB18-HQ"] | None = option(
        None,
        "the songs of scores_dir (None: those of the run's other scores, or of its file names)",
    )
    scenario: Literal["sources", "vocals_accompaniment"] = option(
        "sources", "sources against each other, or vocals against accompaniment as well"
    )
    report_audio: int = option(1, "songs with players in the report", ge=0, le=20)

    @field_validator("checkpoint", "estimates_dir", "scores_dir", mode="plain")
    @classmethod
    def _is_a_place(cls, value: object, info: ValidationInfo) -> Path | str | None:
        return check_place(str(info.field_name), value)
