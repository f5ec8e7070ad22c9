"""Everything from songs to leaderboard: ``python -m jobs.run --preset demo --output_dir O``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.cli import Command, parse
from jobs.cli.run import Result, run_job
from jobs.cli.show import run_result
from lasaft.output import say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("run", argv, lambda words: parse(words, "run"), _work)


def _work(command: Command) -> Result:
    from pipeline.workflow.run import run_workflow

    steps = run_workflow(command.config, say, command.rerun)
    return run_result(command.config, steps)


if __name__ == "__main__":
    sys.exit(main())
