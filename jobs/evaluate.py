"""Separates and scores songs: ``python -m jobs.evaluate --musdb_root R --checkpoint C``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext

from jobs.cli import Command, parse
from jobs.cli.run import Result, run_job
from jobs.cli.show import scores_result
from pipeline.cluster.one_writer import alone_in_run
from pipeline.cluster.shared_storage import ready_cluster


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("evaluate", argv, lambda words: parse(words, "evaluate"), _work)


def _work(command: Command) -> Result:
    from pipeline.workflow.stages import score_songs

    config = command.config
    # Finished scores need no cluster: there is nothing to compute.
    cluster = (
        ready_cluster(config, "to separate and score songs")
        if config.evaluate.scores_dir is None
        else nullcontext()
    )
    with alone_in_run(config, "scores", "estimates"), cluster:
        score_songs(config)
        return scores_result(config)


if __name__ == "__main__":
    sys.exit(main())
