"""Turns songs into shards: ``python -m jobs.preprocess --musdb_root R --shards_dir S``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs._run import Result, run_job
from pipeline.cli import Command, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("preprocess", argv, lambda words: parse(words, "preprocess"), _work)


def _work(command: Command) -> Result:
    from jobs._show import shards_result
    from pipeline.cluster import connected
    from pipeline.stages import make_shards

    with connected(command.config.cluster):
        return shards_result(command.config, make_shards(command.config))


if __name__ == "__main__":
    sys.exit(main())
