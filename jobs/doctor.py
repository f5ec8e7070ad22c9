"""Says whether everything that a run needs is there: ``python -m jobs.doctor --musdb_root R``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.cli.command import Command, parse
from jobs.cli.run import EXIT_FAILED, Result, run_job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("doctor", argv, lambda words: parse(words, "doctor"), _examine)


def _examine(command: Command) -> Result:
    from pipeline.workflow.doctor import as_data, as_table, examine

    checks = examine(command.config)
    data = as_data(checks)
    return Result(as_table(checks), data, EXIT_FAILED if data["faults"] else 0)


if __name__ == "__main__":
    sys.exit(main())
