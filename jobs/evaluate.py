"""Separates and scores songs: ``python -m jobs.evaluate --musdb_root R --checkpoint C``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.cli import Command, parse
from jobs.cli.run import Result, run_job
from jobs.cli.show import scores_result
from pipeline.cluster.shared_storage import ready_cluster


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("evaluate", argv, lambda words: parse(words, "evaluate"), _work)


def _work(command: Command) -> Result:
    from pipeline.workflow.stages import score_songs

    if command.config.evaluate.scores_dir is not None:  # nothing to compute
        score_songs(command.config)
        return scores_result(command.config)
    with ready_cluster(command.config):
        score_songs(command.config)
    return scores_result(command.config)


if __name__ == "__main__":
    sys.exit(main())
