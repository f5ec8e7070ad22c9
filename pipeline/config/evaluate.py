"""The settings of an evaluation: what is separated and scored."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationInfo, field_validator

from lasaft.config import Settings, option
from lasaft.errors import ConfigError, Problem
from lasaft.targets import members
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
    separator: str | None = option(
        None, "a program to run on each song: COMMAND {song} {folder} writes <source>.wav there"
    )
    separator_minutes: float = option(60.0, "the longest that it may take for a song", gt=0)
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
    scenario: Literal["sources", "target_rest", "vocals_accompaniment"] = option(
        "sources",
        "sources against each other, or each against the rest, or vocals against accompaniment too",
    )
    sums: tuple[str, ...] | None = option(
        None, "sums of sources, such as vocals+bass, to score too, each against the rest"
    )
    rescore: bool = option(False, "score songs again whose files lack metrics of today")
    score_device: Literal["cpu", "cuda"] = option(
        "cpu", "where BSS Eval is computed; cuda: each song takes an eighth of a GPU", role="way"
    )
    report_audio: int = option(1, "songs with players in the report", ge=0, le=200)
    single_file: bool = option(False, "the report as one file, with all its sounds in it")

    @field_validator("separator")
    @classmethod
    def _has_places(cls, value: str | None) -> str | None:
        try:
            words = None if value is None else shlex.split(value)
        except ValueError:  # quotes that are left open
            words = []
        if words is not None and not all(
            any(place in word for word in words[1:]) for place in ("{song}", "{folder}")
        ):
            raise ConfigError(Problem("separator", repr(value), "COMMAND {song} {folder}"))
        return value

    @field_validator("checkpoint", "estimates_dir", "scores_dir", mode="plain")
    @classmethod
    def _is_a_place(cls, value: object, info: ValidationInfo) -> Path | str | None:
        return check_place(str(info.field_name), value)


def set_problems(
    sets: Sequence[str] | None, scored: Sequence[str], sources: Sequence[str]
) -> Iterator[Problem]:
    """Yield which of the ``sets`` are none of two or more ``scored`` sources and not all there are.

    Args:
        sets: names such as vocals+bass.
        scored: the sources that are scored by themselves.
        sources: those of the songs.
    """
    seen: set[frozenset[int]] = set()
    for name in sets or ():
        chosen = frozenset(members(name, scored))
        if not 1 < len(chosen) < len(sources) or chosen in seen:
            allowed = f"different sums of two sources or more, but not of all: {'+'.join(scored)}"
            yield Problem("sums", name, allowed, others=("sources", "target_names"))
        seen.add(chosen)
