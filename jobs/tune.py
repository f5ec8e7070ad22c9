"""Searches for the best settings: ``python -m jobs.tune --shards_dir S --space small``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.cli import Command, parse
from jobs.cli.run import Result, run_job
from jobs.cli.show import search_result
from pipeline.cluster.one_writer import alone_in_run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("tune", argv, lambda words: parse(words, "tune"), _work)


def _work(command: Command) -> Result:
    from pipeline.workflow.stages import search_settings

    with alone_in_run(command.config, "search"):
        return search_result(command.config, search_settings(command.config))


if __name__ == "__main__":
    sys.exit(main())
