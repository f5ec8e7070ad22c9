"""The LaSAFT README's command line: ``python -m jobs.main --mode train|eval ...``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jobs.cli.readme import ReadmeCommand, parse_readme
from jobs.cli.run import Result, run_job
from jobs.cli.show import scores_result, training_result
from lasaft.files import atomic_write_bytes
from pipeline.cluster.nodes import require_places
from pipeline.cluster.one_writer import alone_in_run
from pipeline.cluster.shared_storage import ready_cluster
from pipeline.config import RunConfig, to_json, without_secrets
from pipeline.config.folders import RunFolder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("main", argv, parse_readme, _work)


def _work(command: ReadmeCommand) -> Result:
    stage = _train if command.mode == "train" else _evaluate
    with alone_in_run(command.config), ready_cluster(command.config, "for the steps of this run"):
        return stage(command.config)


def _train(config: RunConfig) -> Result:
    from pipeline.workflow.stages import make_shards, train_network

    require_places(config)

    if not RunFolder.of(config).training.exists():
        _store(config)
    with _shards_as_long_as_wanted(config):
        make_shards(config)
        result = train_network(config)
    # Only now: a training that was begun with other options refuses these, and keeps its own.
    _store(config)
    return training_result(result)


def _store(config: RunConfig) -> None:
    atomic_write_bytes(RunFolder.of(config).config, to_json(without_secrets(config)).encode())


@contextmanager
def _shards_as_long_as_wanted(config: RunConfig) -> Iterator[None]:
    """Remove the shards at the end, however it comes, unless ``filed_mode`` keeps them."""

    try:
        yield
    finally:
        if not config.data.filed_mode:
            shutil.rmtree(RunFolder.of(config).shards, ignore_errors=True)


def _evaluate(config: RunConfig) -> Result:
    from pipeline.workflow.stages import make_report, score_songs

    score_songs(config)
    return scores_result(config, make_report(config))


if __name__ == "__main__":
    sys.exit(main())
