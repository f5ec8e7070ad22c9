"""The evaluation stage: every track separated and scored on Ray, then summarised."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lasaft.card import CARDS, card_of, write_cards
from lasaft.checkpoint import Checkpoint, load_checkpoint
from lasaft.errors import ConfigError, DataError, StageError, refuse
from pipeline.cluster.fanout import Needs, run_tasks
from pipeline.cluster.nodes import Lack, patience_seconds, require_gpus, wait_for_room
from pipeline.cluster.parcels import parcel
from pipeline.cluster.progress import Progress, say
from pipeline.cluster.run_store import RunStore
from pipeline.config import RunConfig
from pipeline.config.command_line import command_line, evaluation_settings
from pipeline.config.evaluate import set_problems
from pipeline.config.folders import RunFolder
from pipeline.data.songs.checks import check_tracks
from pipeline.data.songs.make import fetch_songs
from pipeline.data.songs.tracks import Track, list_tracks
from pipeline.data.songs.wanted import Wanted
from pipeline.evaluation.adopted_scores import adopt_scores
from pipeline.evaluation.aggregate import summarise, summarise_track
from pipeline.evaluation.data_identity import data_identity
from pipeline.evaluation.excerpts import EXCERPTS, spread
from pipeline.evaluation.museval_check import TOLERANCE_DB, verify_track
from pipeline.evaluation.scenarios import scenario_of
from pipeline.evaluation.score_files import file_names, read_scores, require_writable
from pipeline.evaluation.score_table import score_table
from pipeline.evaluation.score_track import (
    SystemJob,
    TrackJob,
    TrackOutcome,
    hash_if_readable,
    network_of,
    score_track,
)
from pipeline.evaluation.separators import devices, separators
from pipeline.evaluation.summary import (
    DataIdentity,
    Summary,
    System,
    write_summary,
)
from pipeline.evaluation.systems import identity_of, require_known_folders, systems_of

# Bytes, and bytes more for each second of a track, measured with four stereo sources: a task holds
# 1.6 GB at 240 s, museval 1.2 GB at 30 s and 5.3 GB at 240 s.
_SCORE_MEMORY, _VERIFY_MEMORY = (0.7e9, 4.2e6), (0.9e9, 19e6)
_MEASURED_SOURCES, _TAPS = 4, 512
# Shares of a GPU with score_device cuda: a task scores there for a part of its time only, and
# beside a network that separates there is room for three.
_SCORE_GPU, _NETWORK_GPU = 0.125, 0.6
_SHOWN = 8  # names in a message


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found: a summary for each system, and what a tracker should record."""

    summaries: dict[str, Summary]  # by name; the system of interest first, then the bounds
    files: list[Path]  # the summary and score files
    scored: int  # how many pairs of track and system were scored now; the others were current

    @property
    def lead(self) -> Summary:
        """The summary of the system of interest."""
        return next(iter(self.summaries.values()))

    @property
    def table(self) -> str:
        """The table for a terminal: the system of interest beside the mixture."""
        return score_table(self.lead, self.summaries.get("mixture"))


def evaluate(config: RunConfig) -> EvaluationResult:
    """Separate and score every track of the split; call while connected to Ray.

    Scores that are current (same checkpoint, track content and settings) are kept. A track that
    fails is left out of every summary, which says why. With ``scores_dir`` nothing is scored, and
    Ray is not needed: finished scores are checked and summarised.

    Raises:
        ConfigError, CheckpointError, DataError: wrong input, or a place that cannot be written,
            found before anything is scored.
        StageError: all tracks failed (each is named), or museval disagrees.
    """
    if config.evaluate.scores_dir is not None:
        summary, paths = adopt_scores(config)
        return EvaluationResult({summary.name: summary}, paths, 0)
    score_gpu, network_gpu = _gpu_shares(config)
    folder, checkpoint = RunFolder.of(config), _checkpoint(config)
    systems = systems_of(config, checkpoint)
    tracks, seconds = _tracks(config, folder, checkpoint)
    require_known_folders(systems[0], tracks)
    jobs = _jobs(config, folder, tracks, systems)
    for system in systems:
        require_writable(folder.scores / system.file)
    if config.evaluate.save_estimates != "none" or config.evaluate.report_audio:
        require_writable(folder.estimates)
    for system in systems:  # until all is done there is no whole summary
        (folder.scores / system.file / "summary.json").unlink(missing_ok=True)
    needs, network = _needs(config, jobs[0], seconds, _SCORE_MEMORY), network_of(systems[0])
    needs, sent = replace(needs, gpus=score_gpu), [s.place for s in systems if s.place]
    if network is not None and needs.patience:
        _await_gpus(config, needs)
    with separators(network, parcel(folder, reads=sent), network_gpu) as actors:
        jobs = _spread_over(actors, jobs)
        calls, failures = [(job,) for job in jobs], dict[int, str]()
        outcomes = _on_cluster(
            folder, score_track, calls, seconds, needs, name="evaluate", failures=failures
        )
        verified = _verify(config, jobs, seconds, failures)
    store, excerpts = RunStore(folder), str(folder.estimates.relative_to(folder.root) / EXCERPTS)
    store.pull(excerpts)
    for index, digest in _hashes(config, folder, tracks, failures).items():
        outcomes[index] = TrackOutcome(digest, {}, 0)
        say(f"evaluate: {tracks[index]}: failed: {failures[index]}")
    for job, outcome in zip(jobs, outcomes, strict=True):
        if outcome.changed:
            say(f"evaluate: {job.track}: was changed since it was scored; it is scored anew")
    hashes = [outcome.track_hash for outcome in outcomes]
    data = data_identity(config, folder.songs, tracks, hashes, sum(seconds))
    pairs = enumerate(zip(jobs, outcomes, strict=True))
    done = [pair for index, pair in pairs if index not in failures]
    failed = {tracks[index].name: reason for index, reason in sorted(failures.items())}
    _say_silent(systems[0], [job for job, _ in done])
    summaries = {
        system.name: _summarise(
            system,
            identity_of(system, checkpoint),
            data,
            done,
            failed=failed,
            verified=verified,
            config=config,
        )
        for system in systems
    }
    files = []
    for system in systems:
        path = folder.scores / system.file / "summary.json"
        write_summary(path, summaries[system.name])
        files += [path, *(job.score_file(system) for job, _ in done)]
    _drop_old_excerpts(folder, jobs)
    if checkpoint is not None and config.evaluate.save_estimates != "none":
        place = folder.estimates / systems[0].file
        place.mkdir(parents=True, exist_ok=True)
        kept = [f"{job.track.split}/{job.file}" for job, _ in done]
        write_cards(place, card_of(checkpoint.provenance, checkpoint.hash), kept)
        store.push_files([str((place / CARDS).relative_to(folder.root))])
    store.push("scores", excerpts)
    return EvaluationResult(summaries, files, sum(outcome.scored for _, outcome in done))


def _checkpoint(config: RunConfig) -> Checkpoint | None:
    if config.evaluate.estimates_dir is not None or config.evaluate.separator is not None:
        return None
    return load_checkpoint(RunFolder.of(config).evaluated)


def _tracks(
    config: RunConfig, folder: RunFolder, checkpoint: Checkpoint | None
) -> tuple[list[Track], list[float]]:
    """Return the checked tracks of the split and their lengths in seconds."""
    model = checkpoint.config if checkpoint is not None else config.model
    fetch_songs(config)
    listed = list_tracks(folder.songs, Wanted.of(model, config.data))
    split = config.evaluate.split
    tracks = [track for track in listed if track.split == split]
    if not tracks:
        found = ", ".join(sorted({track.split for track in listed}))
        raise DataError(f"split: no {split} track in {folder.songs}; it has tracks of: {found}")
    samples = check_tracks(tracks, root=folder.songs, config=config)
    return tracks, [count / model.sample_rate for count in samples]


def _jobs(
    config: RunConfig, folder: RunFolder, tracks: Sequence[Track], systems: Sequence[SystemJob]
) -> list[TrackJob]:
    """Return the tracks to score, on the sources that were trained, in the network's order."""
    known = tracks[0].sources
    sources = tuple(s for s in known if s in (config.train.target_names or known))
    scenario = scenario_of(config.evaluate.scenario, sources)
    refuse(set_problems(config.evaluate.sums, sources, known))
    files = file_names([track.name for track in tracks])
    played = set(spread(list(files), config.evaluate.report_audio))
    return [
        TrackJob(
            track=track,
            file=files[track.name],
            sources=sources,
            systems=tuple(systems),
            scenario=scenario,
            scores=folder.scores,
            estimates=folder.estimates,
            sets=config.evaluate.sums or (),
            save=config.evaluate.save_estimates,
            excerpt=track.name in played,
            score_device=config.evaluate.score_device,
            rescore=config.evaluate.rescore,
        )
        for track in tracks
    ]


def _gpu_shares(config: RunConfig) -> tuple[float, float]:
    """Return how much of a GPU a scoring task takes, and how much a network that separates.

    Raises:
        ConfigError: the tasks are to have GPUs, and the cluster has none.
    """
    if config.evaluate.score_device == "cpu":
        return 0.0, 1.0
    patience = patience_seconds(config.cluster)
    lack = Lack("score_device: got cuda", {"GPU": _SCORE_GPU}, 1, patience, "cpu")
    wait_for_room(config, lack)
    return _SCORE_GPU, _NETWORK_GPU


def _await_gpus(config: RunConfig, needs: Needs) -> None:
    """Let nodes come first, so that their GPUs are used: as many as training asks for, or any."""
    try:
        wait_for_room(config, needs.lack)
        require_gpus(config)
    except ConfigError as error:
        say(f"evaluate: {error}; the network runs on CPUs")


def _spread_over(actors: Sequence[Any], jobs: Sequence[TrackJob]) -> list[TrackJob]:
    """Give each job an actor that separates its track, in turn; say where no GPU can be used."""
    if not actors:
        return list(jobs)
    where = devices(list(actors))
    if "cpu" in where:
        say(
            f"evaluate: the cluster lists {len(where)} GPU{'' if len(where) == 1 else 's'}, but "
            f"torch finds no CUDA with {where.count('cpu')} of them: the network runs on the CPU "
            "there"
        )
    return [replace(job, separator=actors[number % len(actors)]) for number, job in enumerate(jobs)]


def _needs(
    config: RunConfig, job: TrackJob, seconds: Sequence[float], memory: tuple[float, float]
) -> Needs:
    """Return what a task of these tracks holds: signals, and filters between those scored together.

    The filters of n sources are half a matrix of 512 n channels, squared.
    """
    more = max(1.0, (1 + len(job.track.sources)) / (1 + _MEASURED_SOURCES))
    together = 2 if job.scenario == "target_rest" else len(job.sources)
    rows = (2 * _TAPS * max(_MEASURED_SOURCES, together), 2 * _TAPS * _MEASURED_SOURCES)
    filters = 8 * (rows[0] ** 2 - rows[1] ** 2) / 2
    program = config.cluster.task_memory * 1e9 if config.evaluate.separator is not None else 0
    return Needs.of(config, memory[0] + filters + more * memory[1] * max(seconds) + program)


def _on_cluster(
    folder: RunFolder,
    function: Callable[..., Any],
    calls: Sequence[tuple[TrackJob, *tuple[Any, ...]]],
    seconds: Sequence[float],
    needs: Needs,
    *,
    name: str,
    failures: dict[int, str] | None = None,
) -> list[Any]:
    """Call ``function`` in a task for each track of ``seconds``; a progress bar shows ``name``."""
    with Progress(name, len(calls), "tracks") as progress:
        return run_tasks(
            function,
            calls,
            names=[str(job.track) for job, *_ in calls],
            needs=needs,
            parcels=[job.parcel(folder) for job, *_ in calls],
            sizes=seconds,
            on_done=lambda name, _: progress.advance(1, name),
            failures=failures,
        )


def _verify(
    config: RunConfig,
    jobs: Sequence[TrackJob],
    seconds: Sequence[float],
    failures: Collection[int],
) -> list[dict[str, Any]]:
    """Score some tracks with museval too; the choice depends on the names of all tracks only."""
    count = min(config.evaluate.verify, len(jobs))
    chosen = sorted(random.Random(len(jobs)).sample(range(len(jobs)), count))
    chosen = [index for index in chosen if index not in failures]
    if not chosen:
        return []
    calls = [(jobs[index], jobs[index].systems[0]) for index in chosen]
    lengths = [seconds[index] for index in chosen]
    needs = _needs(config, jobs[0], lengths, _VERIFY_MEMORY)
    folder = RunFolder.of(config)
    records = _on_cluster(folder, verify_track, calls, lengths, needs, name="museval")
    wrong = []
    for record in records:
        if not record["agrees"]:
            found = (f"{name} {value:.1e} dB" for name, value in record["difference_db"].items())
            wrong.append(f"{record['track']}: {', '.join(found)}")
    if wrong:
        raise StageError(
            f"{len(wrong)} of {len(chosen)} tracks differ from museval by more than "
            f"{TOLERANCE_DB:g} dB; no summary was written:\n" + "\n".join(wrong)
        )
    return records


def _summarise(
    system: SystemJob,
    identity: System,
    data: DataIdentity,
    done: Sequence[tuple[TrackJob, TrackOutcome]],
    *,
    failed: Mapping[str, str],
    verified: Sequence[Mapping[str, Any]],
    config: RunConfig,
) -> Summary:
    records = [
        summarise_track(
            job.track.name,
            f"{data.split}/{job.file}.json",
            outcome.score_hashes[system.file],
            read_scores(job.score_file(system)),
        )
        for job, outcome in done
    ]
    own = [record for record in verified if record["system"] == system.name]
    scenario = done[0][0].scenario
    command = command_line("evaluate", evaluation_settings(config))
    summary = summarise(
        system.name, identity, data, records, scenario=scenario, verified=own, command=command
    )
    return summary.model_copy(update={"failed": dict(failed)})


def _hashes(
    config: RunConfig, folder: RunFolder, tracks: Sequence[Track], chosen: Collection[int]
) -> dict[int, str]:
    """Return what names the content of the chosen tracks; nothing does if they cannot be read."""
    found = run_tasks(
        hash_if_readable,
        [(tracks[index],) for index in chosen],
        names=[str(tracks[index]) for index in chosen],
        needs=Needs.of(config),
        parcels=[parcel(folder, reads=[tracks[index].path]) for index in chosen],
    )
    return dict(zip(chosen, found, strict=True))


def _say_silent(system: SystemJob, jobs: Sequence[TrackJob]) -> None:
    """Say which sources have no SDR in which tracks."""
    for job in jobs:
        values = read_scores(job.score_file(system)).values
        silent = [source for source, table in values.items() if np.isnan(table["SDR"]).all()]
        if silent:
            names = ", ".join(silent[:_SHOWN])
            names += f" and {len(silent) - _SHOWN} more" if len(silent) > _SHOWN else ""
            why = "it or an estimate is silent throughout, or there is no error to measure"
            say(f"evaluate: {job.track}: no SDR of {names}: {why}")


def _drop_old_excerpts(folder: RunFolder, jobs: Sequence[TrackJob]) -> None:
    """Remove excerpts of songs that are no longer played, so that no report shows them."""
    wanted = {job.file for job in jobs if job.excerpt}
    place = folder.estimates / EXCERPTS / jobs[0].track.split
    for old in place.iterdir() if place.is_dir() else ():
        if old.name not in wanted:
            shutil.rmtree(old)
