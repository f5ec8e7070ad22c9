"""One track of an evaluation: decoded once, separated and scored for every system."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lasaft.errors import AudioError, ConfigError, DataError, LasaftError
from lasaft.files import file_sha256
from lasaft.metrics import METRICS, bleedless_fullness, bss_eval, log_wmse, si_sar, si_sdr, usdr
from lasaft.metrics.frames import Frames
from pipeline.cluster.parcels import Parcel, parcel
from pipeline.config.folders import RunFolder
from pipeline.data.songs.stretch import excerpt_stretch
from pipeline.data.songs.tracks import Track, TrackAudio, read_track, source_hash
from pipeline.evaluation import SCORES_SINCE, VERSION
from pipeline.evaluation.estimates import (
    Network,
    Waves,
    device_here,
    keep_estimates,
    mixture_estimates,
    model_estimates,
    oracle_estimates,
    read_estimates,
)
from pipeline.evaluation.excerpts import EXCERPT_FILE, EXCERPTS, write_estimates, write_references
from pipeline.evaluation.program import Program
from pipeline.evaluation.scenarios import (
    ACCOMPANIMENT,
    Attempt,
    Pair,
    is_silent,
    scored_names,
)
from pipeline.evaluation.score_files import (
    LEAK,
    WHOLE_METRICS,
    FrameScores,
    facts_if_current,
    read_key,
    was_of_other_track,
    write_key,
    write_scores,
)
from pipeline.evaluation.summary import Kind, Scenario


@dataclass(frozen=True)
class SystemJob:
    """One system to score."""

    name: str  # its name on the leaderboard
    file: str  # the name of its folders
    kind: Kind  # how its estimates are made
    # The checkpoint folder, or the folder of another system's estimates of this split.
    place: Path | None
    key: Mapping[str, Any]  # what its estimates depend on besides the track, as JSON values
    program: Program | None = None  # what separates songs for it

    @property
    def made_here(self) -> bool:
        """Whether the evaluation separates songs for it: then estimates can be kept."""
        return self.kind == "model" or self.program is not None

    def reads(self, track: Track) -> Path | None:
        """What its estimates of a track are made from, besides the track."""
        if self.place is None or self.kind != "estimates":
            return self.place
        return self.place / track.name


@dataclass(frozen=True)
class TrackJob:
    """One track with everything that a task needs to know to score it."""

    track: Track  # where its audio is
    file: str  # its safe file name
    sources: tuple[str, ...]  # the names of the sources to score
    systems: tuple[SystemJob, ...]  # what to score
    scenario: Scenario  # which sources are scored against which
    scores: Path  # folder of all scores
    estimates: Path  # folder of all kept estimates and excerpts
    sets: tuple[str, ...] = ()  # sets of sources that are scored too
    save: str = "none"  # ``none``, or the format of the model's kept estimates
    excerpt: bool = False  # keep an excerpt for the report
    score_device: Literal["cpu", "cuda"] = "cpu"  # where BSS Eval is computed
    rescore: bool = False  # score again what an earlier version scored with fewer metrics
    separator: Any = None  # the actor on a GPU that separates this track; None: this task does it

    def score_file(self, system: SystemJob) -> Path:
        """Where the scores of ``system`` on this track lie."""
        return self.scores / system.file / self.track.split / f"{self.file}.json"

    def key_file(self, system: SystemJob) -> Path:
        """Where the key of these scores lies: outside the folder that museval's tools read."""
        return self.scores / system.file / "keys" / self.track.split / f"{self.file}.json"

    def estimate_folder(self, system: SystemJob) -> Path:
        """Where the kept estimates of ``system`` lie."""
        return self.estimates / system.file / self.track.split / self.file

    def parcel(self, folder: RunFolder) -> Parcel | None:
        """Return what goes with this job to a node that does not see the run's folder."""
        places = [p for s in self.systems if (p := s.reads(self.track)) is not None]
        written = [self.excerpt_folder] if self.excerpt else []
        if self.save != "none":
            written.append(self.estimate_folder(self.systems[0]))
        files = [f(s) for s in self.systems for f in (self.score_file, self.key_file)]
        return parcel(folder, reads=[*places, self.track.path], writes=written, files=files)

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
    changed: bool = False  # whether it was scored before its files became others


def score_track(job: TrackJob) -> TrackOutcome:
    """Score one track for every system that has no current scores yet; call it in a task.

    A failure is tried once more: a shared disk can fail for a moment.

    Raises:
        LasaftError: the track or its estimates cannot be used, twice.
    """
    with suppress(OSError, RuntimeError, LasaftError):
        return _score_track(job)
    return _score_track(job)


def hash_if_readable(track: Track) -> str:
    """Return the hash of a track's files, or "" if they cannot be read; call it in a task."""
    with suppress(OSError, AudioError):
        return source_hash(track)
    return ""


def _score_track(job: TrackJob) -> TrackOutcome:
    try:
        track_hash = source_hash(job.track)
    except OSError as error:
        raise DataError(f"{job.track}: cannot read {error.filename} ({error.strerror})") from error
    keys = {system.file: _key(job, system, track_hash) for system in job.systems}
    since = VERSION if job.rescore else SCORES_SINCE
    facts = {
        s.file: facts_if_current(job.score_file(s), job.key_file(s), keys[s.file], since)
        for s in job.systems
    }
    changed = any(was_of_other_track(job.key_file(s), keys[s.file]) for s in job.systems)
    hashes = {file: str(known["sha256"]) for file, known in facts.items() if known is not None}
    todo = [s for s in job.systems if not _finished(job, s, facts[s.file])]
    if not todo:
        return TrackOutcome(track_hash, hashes, 0)
    if job.score_device == "cuda" and device_here() != "cuda":
        raise ConfigError(
            "score_device: got cuda, but torch finds no CUDA with the GPU that Ray lists on this "
            "node; allowed: cpu"
        )
    audio = read_track(job.track)
    references = _references(job, audio)
    played = {source: references[source] for source in job.sources}
    if job.excerpt:
        write_references(
            job.excerpt_folder, job.track.name, audio.mixture.numpy(), played, audio.sample_rate
        )
    for system in todo:
        waves = make_estimates(job, system, audio)
        _keep(job, system, waves, played, audio.sample_rate)
        if facts[system.file] is None:
            write_scores(job.score_file(system), _score(job, waves, audio))
        hashes[system.file] = file_sha256(job.score_file(system))
        known = facts[system.file]
        done = {**(known or {}), "sha256": hashes[system.file]}
        done["estimates"] = job.save if system.made_here else "none"
        key = keys[system.file]
        if known is not None:  # as of whoever made the scores
            key |= {"scoring": read_key(job.key_file(system))["key"]["scoring"]}
        write_key(job.key_file(system), key, done)
    return TrackOutcome(track_hash, hashes, len(todo), changed)


def _key(job: TrackJob, system: SystemJob, track_hash: str) -> dict[str, Any]:
    """Return everything that the scores of ``system`` on this track depend on."""
    return {
        "scoring": VERSION,
        "track": track_hash,
        "sources": list(job.sources),
        "all_sources": list(job.track.sources),
        "scenario": job.scenario,
        **({"sets": list(job.sets)} if job.sets else {}),
        **(
            _content_of(system, job.track)
            if system.kind == "estimates" and system.place
            else system.key
        ),
    }


def _content_of(system: SystemJob, track: Track) -> dict[str, str]:
    """Return the hash of the files of a system's estimates of a track."""
    folder = system.reads(track)
    assert folder is not None
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.*")):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return {"estimates": digest.hexdigest()}


def _finished(job: TrackJob, system: SystemJob, facts: Mapping[str, Any] | None) -> bool:
    """Return whether scores, kept estimates and the excerpt of ``system`` are all there."""
    if facts is None:
        return False
    if job.excerpt and not (job.excerpt_folder / EXCERPT_FILE).is_file():
        return False
    if not system.made_here:
        return True
    excerpts = [job.excerpt_folder / system.file / f"{s}.wav" for s in job.sources]
    if job.excerpt and not all(file.is_file() for file in excerpts):
        return False
    made = (*job.sources, *job.sets)
    kept = [job.estimate_folder(system) / f"{name}.{job.save}" for name in made]
    return job.save == "none" or (
        facts.get("estimates") == job.save and all(file.is_file() for file in kept)
    )


def make_estimates(job: TrackJob, system: SystemJob, audio: TrackAudio) -> Waves:
    """Return the estimates [channel, sample] of ``system`` for each source and set to score."""
    wanted = (*job.sources, *job.sets)
    if system.kind == "mixture":
        return mixture_estimates(audio, (*job.track.sources, ACCOMPANIMENT, *wanted))
    if system.kind in ("irm", "ibm"):
        return oracle_estimates(audio, job.track.sources, wanted, system.kind)
    welcome = scored_names(job.scenario, job.sources, job.sets)
    if (program := system.program) is not None:
        mixture, rate = audio.mixture.numpy(), audio.sample_rate
        with program.separated(job.file, mixture, rate, job.sources) as folder:
            return read_estimates(folder, job.sources, audio, welcome)
    assert system.place is not None
    if system.kind == "estimates":
        return read_estimates(system.place / job.track.name, job.sources, audio, welcome)
    network = network_of(system)
    assert network is not None
    return model_estimates(audio, wanted, network, job.separator)


def network_of(system: SystemJob) -> Network | None:
    """Return the network of a system; None for estimates that no network makes here."""
    if system.kind != "model" or system.place is None:
        return None
    return Network(system.place, system.key["checkpoint"], system.key["overlap_ratio"])


def _references(job: TrackJob, audio: TrackAudio) -> Waves:
    """Return all sources [channel, sample] of the track, by name."""
    return dict(zip(job.track.sources, audio.sources.numpy(), strict=True))


def attempt_of(job: TrackJob, waves: Waves, audio: TrackAudio) -> Attempt:
    """Return what takes part in scoring the estimates ``waves`` [channel, sample]."""
    references, mixture = _references(job, audio), audio.mixture.numpy()
    return Attempt(job.scenario, job.sources, job.sets, references, waves, mixture)


def _score(job: TrackJob, waves: Waves, audio: TrackAudio) -> FrameScores:
    values: dict[str, dict[str, np.ndarray]] = {}
    artifacts: dict[str, float] = {}
    attempt = attempt_of(job, waves, audio)
    device = None if job.score_device == "cpu" else job.score_device
    for contest in attempt.contests():
        try:
            pair = contest.references, contest.estimates
            scores = bss_eval(*pair, sample_rate=audio.sample_rate, device=device)
        except AudioError as error:
            names = ", ".join(f"{number} is {name}" for number, name in enumerate(contest.names))
            raise AudioError(f"{error} (source {names})") from error
        sar = si_sar(contest.references, contest.estimates)
        for index, name in enumerate(contest.names):
            if name in contest.kept:
                values[name] = {m: scores.metric(m)[index] for m in METRICS}
                artifacts[name] = float(sar[index])
    # A source that is silent throughout has no number in any frame.
    count = Frames.of_seconds(audio.sample_rate, 1.0, 1.0, audio.mixture.shape[1]).count
    none = {metric: np.full(count, np.nan) for metric in METRICS}
    return FrameScores(
        {name: values.get(name, none) for name in attempt.names},
        _whole({name: attempt.pair(name) for name in attempt.names}, audio, artifacts),
    )


def _whole(
    pairs: Mapping[str, Pair], audio: TrackAudio, artifacts: Mapping[str, float]
) -> dict[str, dict[str, float | None]]:
    """Return the scores of a whole song for each of the ``pairs``; SI-SAR is known already."""
    mixture, rate = audio.mixture.numpy(), audio.sample_rate
    rows: dict[str, dict[str, float | None]] = {}
    sounding = {name: pair for name, pair in pairs.items() if not is_silent(pair[0])}
    for name in pairs.keys() - sounding.keys():  # of a mixture without its estimate that is missing
        leak = usdr([mixture], [mixture.astype(np.float64) - pairs[name][1]])
        rows[name] = {**dict.fromkeys(WHOLE_METRICS), LEAK: float(leak[0])}
    if sounding:
        true, ours = ([pair[side] for pair in sounding.values()] for side in range(2))
        sar = np.array([artifacts.get(name, np.nan) for name in sounding])
        found = usdr(true, ours), si_sdr(true, ours), sar, log_wmse(true, ours, mixture, rate)
        table = np.stack([*found, *bleedless_fullness(true, ours, rate)], axis=1)
        for name, values in zip(sounding, table.tolist(), strict=True):
            finite = (value if np.isfinite(value) else None for value in values)
            rows[name] = dict(zip(WHOLE_METRICS, finite, strict=True))
    return {name: rows[name] for name in pairs}


def _keep(
    job: TrackJob, system: SystemJob, waves: Waves, references: Waves, sample_rate: int
) -> None:
    if system.kind not in ("model", "estimates"):  # of bounds nothing is worth keeping
        return
    if job.save != "none" and system.made_here:
        keep_estimates(job.estimate_folder(system), waves, sample_rate, job.save)
    if job.excerpt:
        stretch = excerpt_stretch(references, sample_rate)
        own = {source: waves[source] for source in job.sources}
        write_estimates(job.excerpt_folder, system.file, own, stretch, sample_rate)
