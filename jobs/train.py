"""Trains a network on shards: ``python -m jobs.train --shards_dir S --output_dir O``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.cli import Command, parse
from jobs.cli.run import Result, run_job
from jobs.cli.show import training_result
from pipeline.cluster.one_writer import alone_in_run
from pipeline.cluster.run_store import TRAINED
from pipeline.cluster.shared_storage import ready_cluster


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("train", argv, lambda words: parse(words, "train"), _work)


def _work(command: Command) -> Result:
    from pipeline.workflow.stages import train_network

    with alone_in_run(command.config, *TRAINED), ready_cluster(command.config, "to train"):
        return training_result(train_network(command.config))


if __name__ == "__main__":
    sys.exit(main())
