"""Turns songs into shards: ``python -m jobs.preprocess --musdb_root R --shards_dir S``.

With ``--verify`` it reads the shards again, with ``--repair`` it replaces the damaged ones alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from jobs.cli import Command, parse
from jobs.cli.run import Result, run_job
from jobs.cli.show import inspection_result, repair_result, shards_result
from pipeline.cluster.one_writer import alone_in_run
from pipeline.cluster.shared_storage import ready_cluster
from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.store import shard_place


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job("preprocess", argv, lambda words: parse(words, "preprocess"), _work)


def _work(command: Command) -> Result:
    from pipeline.workflow.stages import make_shards

    if command.flags:
        return _look(command)
    with _own_folder(command.config), ready_cluster(command.config, "to make shards"):
        return shards_result(command.config, make_shards(command.config))


def _own_folder(config: RunConfig) -> AbstractContextManager[None]:
    """Be alone in the run's folder, where songs or shards are made in it."""
    folder = RunFolder.of(config)
    makes = any(place.is_relative_to(folder.root) for place in (folder.songs, folder.shards))
    return alone_in_run(config) if makes else nullcontext()


def _look(command: Command) -> Result:
    from pipeline.data.shards.inspect import inspect_place
    from pipeline.data.shards.repair import repair_shards, repair_store

    config, folder = command.config, RunFolder.of(command.config)
    place = shard_place(folder)
    found = inspect_place(place)
    if not found.faults or "repair" not in command.flags:
        return inspection_result(config, found)
    if isinstance(place, RemoteFolder):
        with _own_folder(config):
            return repair_result(config, found, repair_store(config, place, found))
    with _own_folder(config), ready_cluster(config, "to make shards"):
        return repair_result(config, found, repair_shards(config, found))


if __name__ == "__main__":
    sys.exit(main())
