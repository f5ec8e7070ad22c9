"""Says whether everything that a run needs is there: ``python -m jobs.doctor --musdb_root R``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.cli.command import Command, parse
from jobs.cli.run import EXIT_FAILED, Result, run_job
from lasaft.output import Colour

_COLOURS: dict[str, Colour] = {"ok": "", "note": "yellow", "FAULT": "red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("doctor", argv, lambda words: parse(words, "doctor"), _examine)


def _examine(command: Command) -> Result:
    from pipeline.workflow.doctor import as_data, examine

    checks = []
    for check in examine(command.config):
        command.show(check.shown, _COLOURS[check.verdict])
        checks.append(check)
    data = as_data(checks)
    faults = data["faults"]
    text = f"{faults} fault{'' if faults == 1 else 's'}" if faults else "all well"
    return Result(text, data, EXIT_FAILED if faults else 0)


if __name__ == "__main__":
    sys.exit(main())
