"""Each stage with its records in MLflow, as the jobs and the workflow call it; Ray is connected."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from lasaft.card import NOT_STATED, data_name
from pipeline.config import RunConfig
from pipeline.config.addresses import shown
from pipeline.config.folders import RunFolder
from pipeline.evaluation.excerpts import EXCERPTS
from pipeline.tracking import Tracker

if TYPE_CHECKING:
    from pipeline.data.shards.manifest import Manifest
    from pipeline.evaluation.evaluate import EvaluationResult
    from pipeline.evaluation.summary import Summary
    from pipeline.report.build import ReportResult
    from pipeline.search.ranking import SearchResult
    from pipeline.training.loop.records import TrainResult


def make_shards(config: RunConfig) -> Manifest:
    """Make the songs first where the run is on synthetic ones, then the shards."""
    from pipeline.data.shards.preprocess import preprocess
    from pipeline.data.songs.make import make_songs, wants_songs

    if wants_songs(config):
        make_songs(config)
    return preprocess(config)


def train_network(config: RunConfig) -> TrainResult:
    """Train; MLflow gets the settings, the journal's metrics, the data's hash and the model."""
    from lasaft.config import variant_name
    from pipeline.training.train import train

    folder = RunFolder.of(config)
    tracker = Tracker(config, folder)
    with ExitStack() as stack:

        def begin() -> None:
            _record_start(stack.enter_context(tracker), config, folder)
            tracker.follow(folder.metrics)

        result = train(config, begin)
        name = f"{config.tracking.experiment_name}-{variant_name(config.model)}"
        tracker.log_model(folder.checkpoint, name)
    return result


def _record_start(tracker: Tracker, config: RunConfig, folder: RunFolder) -> None:
    """Record settings and data of a stage that learns from shards."""
    from pipeline.data.shards.manifest import read_manifest
    from pipeline.data.shards.store import shard_place
    from pipeline.training.loop.records import git_commit

    place = shard_place(folder)
    digest = read_manifest(place).hash
    tracker.log_params()
    tracker.set_tags({"data_hash": digest, "mlflow.source.git.commit": git_commit() or NOT_STATED})
    name = data_name(config.data.model_dump(mode="json")) or folder.shards.name
    tracker.log_dataset(name, digest, "train", shown(str(place)))


def search_settings(config: RunConfig) -> SearchResult:
    """Search for the best settings; MLflow gets a run of each trial below this run's own."""
    from pipeline.search.page import write_report
    from pipeline.search.search import search

    folder = RunFolder.of(config)
    tracker = Tracker(config, folder)
    with ExitStack() as stack:

        def begin() -> None:
            _record_start(stack.enter_context(tracker), config, folder)

        result = search(config, begin)
        winner = result.winner
        figures = {name: winner.trial.figure(name) for name in config.search.objectives}
        figures |= {"mean": winner.mean, "spread": winner.spread, "trials": len(result.rows)}
        tracker.log_metrics({f"search/{k}": v for k, v in figures.items() if v is not None})
        page = write_report(config, result)
        for path in (page, result.preset, result.folder / "results.csv"):
            tracker.log_artifact(path, "search")
    return result


def score_songs(config: RunConfig) -> EvaluationResult:
    """Separate and score; MLflow gets a run of each system below this run's own.

    This run's own has the figures of the network that was trained in it, and of no other system.
    """
    from pipeline.evaluation.evaluate import evaluate

    folder = RunFolder.of(config)
    with Tracker(config, folder) as tracker:
        result = evaluate(config)
        if result.lead.system.kind == "model" and folder.evaluated == folder.checkpoint:
            tracker.log_metrics(result.lead.metrics)
        for summary in result.summaries.values():
            _record_system(tracker.child(summary.name), summary)
        for file in result.files:
            tracker.log_artifact(file, f"scores/{file.parent.relative_to(folder.scores)}")
        if (folder.estimates / EXCERPTS).is_dir():
            tracker.log_artifact(folder.estimates / EXCERPTS, "audio")
    return result


def _record_system(tracker: Tracker, summary: Summary) -> None:
    """Record what a system is, its figures and its scores of each track."""
    from pipeline.evaluation.score_files import ALL_METRICS

    system, data = summary.system, summary.data
    tracker.log_params({**(system.config or {}), **system.settings, "scenario": summary.scenario})
    facts = {name: getattr(system, name) for name in ("kind", "checkpoint", "variant")}
    facts |= {"data_hash": data.hash, "command": summary.command}
    tracker.set_tags({f"lasaft.{name}": str(fact) for name, fact in facts.items() if fact})
    tracker.log_dataset(data.name, data.hash, data.split)
    tracker.log_metrics(summary.metrics)
    rows = [
        [track.name, source, *(row[metric] for metric in ALL_METRICS)]
        for track in summary.tracks
        for source, row in track.scores.items()
    ]
    tracker.log_table("scores", ["track", "source", *ALL_METRICS], rows)
    tracker.finish()


def make_report(config: RunConfig) -> ReportResult:
    """Write the report; MLflow gets its files, and the table of all systems on it."""
    from pipeline.evaluation.score_files import ALL_METRICS
    from pipeline.evaluation.summary import usual_aggregation
    from pipeline.report.board import Cell
    from pipeline.report.build import AUDIO, write_report
    from pipeline.report.comparisons import AVERAGE

    folder = RunFolder.of(config)
    with Tracker(config, folder) as tracker:
        result = write_report(config)
        for file in result.files:
            tracker.log_artifact(file, "report")
        if (folder.report / AUDIO).is_dir():
            tracker.log_artifact(folder.report / AUDIO, f"report/{AUDIO}")
        views = [(metric, usual_aggregation(metric)) for metric in ALL_METRICS]
        rows = [
            [row.name, source, *(row.cells.get((source, *v), Cell(None)).value for v in views)]
            for row in result.board.measured
            for source in (*result.board.sources, AVERAGE)
        ]
        tracker.log_table("leaderboard", ["system", "source", *ALL_METRICS], rows)
    return result
