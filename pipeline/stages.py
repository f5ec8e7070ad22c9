"""Each stage with its records in MLflow, as the jobs and the workflow call it; Ray is connected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config import RunConfig
from pipeline.excerpts import EXCERPTS
from pipeline.folders import RunFolder
from pipeline.tracking import Tracker

if TYPE_CHECKING:
    from pipeline.manifest import Manifest
    from pipeline.report import ReportResult
    from pipeline.scoring import EvaluationResult
    from pipeline.training.result import TrainResult


def make_shards(config: RunConfig) -> Manifest:
    """Make the songs first where the run is on synthetic ones, then the shards."""
    from pipeline.preprocess import preprocess
    from pipeline.songs import make_songs, wants_songs

    if wants_songs(config):
        make_songs(config)
    return preprocess(config)


def train_network(config: RunConfig) -> TrainResult:
    """Train; MLflow gets the configuration, the journal's metrics and the data's hash."""
    from pipeline.manifest import read_manifest
    from pipeline.train import train

    folder = RunFolder.of(config)
    with Tracker(config, folder) as tracker:
        tracker.log_params()
        tracker.set_tags({"data_hash": read_manifest(folder.shards).hash})
        tracker.follow(folder.metrics)
        result = train(config)
        tracker.log_artifact(folder.checkpoint, "checkpoint")
    return result


def score_songs(config: RunConfig) -> EvaluationResult:
    """Separate and score; MLflow gets the figures, their table, the score files and excerpts."""
    from pipeline.score_files import METRICS
    from pipeline.scoring import evaluate

    folder = RunFolder.of(config)
    with Tracker(config, folder) as tracker:
        result = evaluate(config)
        tracker.log_metrics(result.metrics)
        rows = [
            [name, source, *(figures[metric].median for metric in METRICS)]
            for name, summary in result.summaries.items()
            for source, figures in (*summary.scores.items(), ("average", summary.average))
        ]
        tracker.log_table("scores", ["system", "source", *METRICS], rows)
        for file in result.files:
            tracker.log_artifact(file, f"scores/{file.parent.relative_to(folder.scores)}")
        if (folder.estimates / EXCERPTS).is_dir():
            tracker.log_artifact(folder.estimates / EXCERPTS, "audio")
    return result


def make_report(config: RunConfig) -> ReportResult:
    """Write the report; MLflow gets its files."""
    from pipeline.report import write_report

    folder = RunFolder.of(config)
    with Tracker(config, folder) as tracker:
        result = write_report(config)
        for file in result.files:
            tracker.log_artifact(file, "report")
    return result
