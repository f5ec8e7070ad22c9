"""Makes the report of a run from its scores: ``python -m jobs.report --output_dir O``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.cli import Command, parse
from jobs.cli.run import Result, run_job
from jobs.cli.show import scores_result
from pipeline.cluster.one_writer import alone_in_run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("report", argv, lambda words: parse(words, "report"), _work)


def _work(command: Command) -> Result:
    from pipeline.workflow.stages import make_report

    with alone_in_run(command.config, "report"):
        return scores_result(command.config, make_report(command.config))


if __name__ == "__main__":
    sys.exit(main())
