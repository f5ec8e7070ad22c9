"""Hand-made scores, excerpts and journals: a scored run folder without a model or a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lasaft.files import file_sha256, safe_name
from pipeline.data.songs.stretch import excerpt_stretch
from pipeline.evaluation.aggregate import summarise, summarise_track
from pipeline.evaluation.excerpts import write_estimates, write_references
from pipeline.evaluation.score_files import (
    METRICS,
    WHOLE_METRICS,
    FrameScores,
    read_scores,
    write_scores,
)
from pipeline.evaluation.summary import (
    DataIdentity,
    Kind,
    Summary,
    System,
    TrackSummary,
    write_summary,
)
from pipeline.report.board import Board, build_board
from pipeline.report.comparisons import Column, Entry

SOURCES = ("vocals", "drums", "bass", "other")
SYNTHETIC = DataIdentity(name="Synthetic songs", kind="synthetic", split="test", hash="ab" * 32)


def frame_scores(
    level: float, seed: int, frames: int = 12, sources: Sequence[str] = SOURCES
) -> FrameScores:
    """Return random scores around ``level`` dB; the third frame is NaN, as in a silent second."""
    random = np.random.default_rng(seed)
    values = {s: {m: level + 2 * random.standard_normal(frames) for m in METRICS} for s in sources}
    for metrics in values.values():
        for column in metrics.values():
            column[2] = np.nan
    whole = {
        s: {m: round(level + random.standard_normal(), 5) for m in WHOLE_METRICS} for s in sources
    }
    return FrameScores(values, whole)


def scored_summary(
    name: str,
    level: float,
    tracks: Sequence[str],
    *,
    kind: Kind = "model",
    seed: int = 0,
    data: DataIdentity = SYNTHETIC,
    sources: Sequence[str] = SOURCES,
    training_seed: int = 2020,
) -> Summary:
    """Return the summary of a system with random scores around ``level`` dB on ``tracks``."""
    records: list[TrackSummary] = []
    for number, track in enumerate(tracks):
        scores = frame_scores(level + number % 5 - 2, 1000 * seed + number, sources=sources)
        records.append(record_of(track, scores))
    system = System(kind=kind)
    if kind == "model":
        system = System(
            kind="model",
            checkpoint="ef" * 32,
            variant="CUNET_TFC_GPoCM_LaSAFT",
            recipe="99" * 32,
            seed=training_seed,
            provenance={"commit": "0123abc"},
            settings={"overlap_ratio": 0.5},
        )
    return summarise(
        name, system, data, records, command=f"python -m jobs.evaluate --run_id {name}"
    )


_SCORES: dict[str, FrameScores] = {}  # by the hash that a summary has of their file


def record_of(track: str, scores: FrameScores) -> TrackSummary:
    """Return the summary of a track with these scores."""
    with TemporaryDirectory() as folder:
        write_scores(file := Path(folder) / "scores.json", scores)
        scores, digest = read_scores(file), file_sha256(file)
    _SCORES[digest] = scores
    return summarise_track(track, f"{safe_name(track)}.json", digest, scores)


def entry_of(summary: Summary) -> Entry:
    """Return a system with the frames of the scores that were made for it."""
    songs = {
        source: {t.name: Column.of(_SCORES[t.sha256].values[source]["SDR"]) for t in summary.tracks}
        for source in summary.sources
    }
    return Entry(summary, songs)


def board_of(lead: Summary, *others: Summary) -> Board:
    """Return the board of these systems."""
    return build_board([entry_of(summary) for summary in (lead, *others)], lead)


def save_summary(scores: Path, summary: Summary, folder: str | None = None) -> None:
    """Write a summary where ``evaluate`` writes it, beside the scores that were made for it."""
    path = scores / (folder or summary.name) / "summary.json"
    write_summary(path, summary)
    for track in summary.tracks:
        if track.sha256 in _SCORES:
            write_scores(path.parent / track.file, _SCORES[track.sha256])


def save_museval_files(folder: Path, tracks: dict[str, FrameScores]) -> None:
    """Write score files in museval's layout below ``folder``."""
    for name, scores in tracks.items():
        write_scores(folder / "test" / f"{name}.json", scores)


def save_excerpt(folder: Path, track: str, systems: Sequence[str], rate: int = 8000) -> None:
    """Write an excerpt of four tones, each system's estimates a little noisier."""
    random = np.random.default_rng(0)
    time = np.arange(8 * rate) / rate
    tones = {s: 0.2 * np.sin(2 * np.pi * 110 * 2**i * time) for i, s in enumerate(SOURCES)}
    references = {s: np.stack([tone, tone]).astype(np.float32) for s, tone in tones.items()}
    mixture = np.sum(list(references.values()), axis=0)
    write_references(folder, track, mixture, references, rate)
    stretch = excerpt_stretch(references, rate)
    for number, system in enumerate(systems, 1):
        noise = {s: 0.03 * number * random.standard_normal(mixture.shape) for s in SOURCES}
        write_estimates(
            folder, system, {s: references[s] + noise[s] for s in SOURCES}, stretch, rate
        )


def save_journal(path: Path, epochs: int = 12) -> None:
    """Write a journal of training in the pipeline's record format."""
    records = []
    for epoch in range(epochs):
        for step in range(10 * epoch, 10 * epoch + 10):
            loss = 2.0 * 0.98**step + 0.05 * (step % 3)
            records.append(("step", step, epoch, {"train/loss": loss, "train/lr": 1e-3}))
        values: dict[str, float] = {"valid/loss": 2.2 * 0.82**epoch + 0.3}
        values |= {f"valid/{s}/SDR": 5 - (4 + i) * 0.8**epoch for i, s in enumerate(SOURCES)}
        records.append(("validation", 10 * epoch + 9, epoch, values))
    keys = ("kind", "step", "epoch", "values")
    lines = [json.dumps({**dict(zip(keys, r, strict=True)), "seconds": 1.0}) for r in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
