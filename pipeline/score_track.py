"""One track of an evaluation: decoded once, separated and scored for every system."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lasaft.errors import AudioError, DataError, LasaftError
from lasaft.metrics import bss_eval
from pipeline.estimates import (
    Waves,
    keep_estimates,
    mixture_estimates,
    model_estimates,
    oracle_estimates,
    read_estimates,
)
from pipeline.excerpts import (
    EXCERPT_FILE,
    EXCERPTS,
    excerpt_stretch,
    write_estimates,
    write_references,
)
from pipeline.score_files import METRICS, FrameScores, facts_if_current, write_key, write_scores
from pipeline.summary import Kind
from pipeline.tracks import Track, TrackAudio, read_track, source_hash

# Part of every key: raise it when the same estimates would get other scores.
_SCORING_VERSION = 1
_ATTEMPTS = 2


@dataclass(frozen=True)
class SystemJob:
    """One system to score.

    Args:
        name: its name on the leaderboard.
        file: the name of its folders.
        kind: how its estimates are made.
        place: the checkpoint folder, or the folder of another system's estimates of this split.
        key: what its estimates depend on besides the track, as JSON values.
    """

    name: str
    file: str
    kind: Kind
    place: Path | None
    key: Mapping[str, Any]


@dataclass(frozen=True)
class TrackJob:
    """One track with everything that a task needs to know to score it.

    Args:
        track: where its audio is.
        file: its safe file name.
        sources: the names of the sources to score.
        systems: what to score.
        scores: folder of all scores.
        estimates: folder of all kept estimates and excerpts.
        save: ``none``, or the format of the model's kept estimates.
        excerpt: keep an excerpt for the report.
        device: where the network runs.
    """

    track: Track
    file: str
    sources: tuple[str, ...]
    systems: tuple[SystemJob, ...]
    scores: Path
    estimates: Path
    save: str = "none"
    excerpt: bool = False
    device: str = "cpu"

    def score_file(self, system: SystemJob) -> Path:
        """Where the scores of ``system`` on this track lie."""
        return self.scores / system.file / self.track.split / f"{self.file}.json"

    def key_file(self, system: SystemJob) -> Path:
        """Where the key of these scores lies: outside the folder that museval's tools read."""
        return self.scores / system.file / "keys" / self.track.split / f"{self.file}.json"

    def estimate_folder(self, system: SystemJob) -> Path:
        """Where the kept estimates of ``system`` lie."""
        return self.estimates / system.file / self.track.split / self.file

    @property
    def excerpt_folder(self) -> Path:
        """Where the excerpt of this track lies."""
        return self.estimates / EXCERPTS / self.track.split / self.file


@dataclass(frozen=True)
class TrackOutcome:
    """What a task reports: the hash of the track's files, and of each system's score file."""

    track_hash: str
    score_hashes: dict[str, str]
    scored: int


def score_track(job: TrackJob) -> TrackOutcome:
    """Score one track for every system that has no current scores yet; call it in a task.

    A failure is tried once more: a shared disk can fail for a moment.

    Raises:
        LasaftError: the track or its estimates cannot be used, twice.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _score_track(job)
        except (OSError, RuntimeError, LasaftError):
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _score_track(job: TrackJob) -> TrackOutcome:
    try:
        track_hash = source_hash(job.track)
    except OSError as error:
        raise DataError(f"{job.track}: cannot read {error.filename} ({error.strerror})") from error
    keys = {system.file: system_key(job, system, track_hash) for system in job.systems}
    facts = {
        system.file: facts_if_current(
            job.score_file(system), job.key_file(system), keys[system.file]
        )
        for system in job.systems
    }
    todo = [s for s in job.systems if not _finished(job, s, facts[s.file])]
    if not todo:
        return TrackOutcome(track_hash, {f: str(v["sha256"]) for f, v in _known(facts)}, 0)
    audio = read_track(job.track)
    references = _references(job, audio)
    if job.excerpt:
        write_references(
            job.excerpt_folder, job.track.name, audio.mixture.numpy(), references, audio.sample_rate
        )
    for system in todo:
        waves = make_estimates(job, system, audio)
        _keep(job, system, waves, references, audio.sample_rate)
        if facts[system.file] is None:
            scores = _score(job, references, waves, audio)
            write_scores(job.score_file(system), scores)
        digest = hashlib.sha256(job.score_file(system).read_bytes()).hexdigest()
        done = {**(facts[system.file] or {}), "sha256": digest}
        done["estimates"] = job.save if system.place else "none"
        write_key(job.key_file(system), keys[system.file], done)
        facts[system.file] = done
    return TrackOutcome(track_hash, {f: str(v["sha256"]) for f, v in _known(facts)}, len(todo))


def _known(facts: Mapping[str, dict[str, Any] | None]) -> list[tuple[str, dict[str, Any]]]:
    return [(file, value) for file, value in facts.items() if value is not None]


def system_key(job: TrackJob, system: SystemJob, track_hash: str) -> dict[str, Any]:
    """Return everything that the scores of ``system`` on this track depend on."""
    return {
        "scoring": _SCORING_VERSION,
        "track": track_hash,
        "sources": list(job.sources),
        "all_sources": list(job.track.sources),
        **system.key,
    }


def _finished(job: TrackJob, system: SystemJob, facts: Mapping[str, Any] | None) -> bool:
    """Return whether scores, kept estimates and the excerpt of ``system`` are all there."""
    if facts is None:
        return False
    if job.excerpt and not (job.excerpt_folder / EXCERPT_FILE).is_file():
        return False
    if system.place is None or system.kind == "estimates":
        return True
    excerpts = [job.excerpt_folder / system.file / f"{s}.wav" for s in job.sources]
    if job.excerpt and not all(file.is_file() for file in excerpts):
        return False
    kept = [job.estimate_folder(system) / f"{s}.{job.save}" for s in job.sources]
    return job.save == "none" or (
        facts.get("estimates") == job.save and all(file.is_file() for file in kept)
    )


def make_estimates(job: TrackJob, system: SystemJob, audio: TrackAudio) -> Waves:
    """Return the estimates [channel, sample] of ``system`` for each source to score."""
    if system.kind == "mixture":
        return mixture_estimates(audio, job.sources)
    if system.kind in ("irm", "ibm"):
        waves = oracle_estimates(audio, job.track.sources, system.kind)
        return {source: waves[source] for source in job.sources}
    assert system.place is not None
    if system.kind == "estimates":
        return read_estimates(system.place / job.track.name, job.sources, audio)
    return model_estimates(
        audio,
        job.sources,
        system.place,
        wanted_hash=system.key["checkpoint"],
        overlap_ratio=system.key["overlap_ratio"],
        device=job.device,
    )


def _references(job: TrackJob, audio: TrackAudio) -> Waves:
    waves = dict(zip(job.track.sources, audio.sources.numpy(), strict=True))
    return {source: waves[source] for source in job.sources}


def stacked(waves: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the waves in order, for scoring: estimates may differ in length."""
    return list(waves.values())


def _score(job: TrackJob, references: Waves, waves: Waves, audio: TrackAudio) -> FrameScores:
    try:
        scores = bss_eval(stacked(references), stacked(waves), sample_rate=audio.sample_rate)
    except AudioError as error:
        names = ", ".join(f"{number} is {s}" for number, s in enumerate(job.sources))
        raise AudioError(f"{error} (source {names})") from error
    table = {metric: scores.metric(metric) for metric in METRICS}
    return FrameScores(
        {s: {m: table[m][index] for m in METRICS} for index, s in enumerate(job.sources)}
    )


def _keep(
    job: TrackJob, system: SystemJob, waves: Waves, references: Waves, sample_rate: int
) -> None:
    if system.place is None:  # the mixture and the oracles: nothing that is worth keeping
        return
    if job.save != "none" and system.kind == "model":
        keep_estimates(job.estimate_folder(system), waves, sample_rate, job.save)
    if job.excerpt:
        stretch = excerpt_stretch(references, sample_rate)
        write_estimates(job.excerpt_folder, system.file, waves, stretch, sample_rate)
