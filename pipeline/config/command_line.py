"""The command line that gives a result again: every option that is not its default."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config.data import SONG_FORM
from pipeline.config.run import RunConfig

# Where a run is recorded, which machines did it (both may hold secrets), and whether its shards
# stayed, which jobs.main alone decides: no part of the result.
_LEFT_OUT = ("tracking_uri", "address", "filed_mode")


def command_line(job: str, settings: Mapping[str, Any]) -> str:
    r"""Return ``python -m jobs.<job>`` with the options that ``settings`` change.

    Args:
        job: name of the job.
        settings: the tree of a configuration, or some of its groups, as JSON values.

    >>> print(command_line("train", {"train": {"lr": 0.5, "seed": 2020}}))
    python -m jobs.train \
        --lr 0.5
    """
    words = [f"--{name} {shlex.quote(_word(value))}" for name, value in _changed(settings)]
    return " \\\n    ".join([f"python -m jobs.{job}", *words])


def evaluation_settings(config: RunConfig) -> dict[str, Any]:
    """Return the part of a configuration that decides what an evaluation gives."""
    whole = config.model_dump(mode="json", include={"output_dir", "data", "evaluate", "tracking"})
    kept = ("musdb", *SONG_FORM, "synthetic", "dev")
    songs = {n: v for n, v in whole["data"].items() if n.startswith(kept)}
    named = {"run_id": whole["tracking"]["run_id"], "target_names": config.train.target_names}
    return {**whole, "data": songs, "tracking": named}


def _changed(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    usual = dict(_leaves(RunConfig().model_dump(mode="json")))
    for name, value in _leaves(settings):
        if value is not None and name not in _LEFT_OUT and value != usual.get(name):
            yield name, value


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield name, value


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
