"""A search's folder belongs to one search, and to one command at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lasaft.errors import StageError
from pipeline.cluster import locks
from pipeline.config import RunConfig
from pipeline.config.fingerprints import digest
from pipeline.config.folders import RunFolder
from pipeline.search.problems import trial_base
from pipeline.search.space import Space
from pipeline.training.loop.identity import claim_folder, identity


def claim(config: RunConfig, space: Space, data_hash: str) -> None:
    """Make the search's folder this search's, or find that it is.

    Raises:
        ConfigError: it is another's; one line for each option that differs.
    """
    root = RunFolder.of(config).search
    settings = config.search
    mine: dict[str, Any] = {
        f"search.{name}": json.loads(settings.model_dump_json())[name]
        for name in (
            "searcher", "scheduler", "objectives", "trial_epochs", "grace_epochs",
            "reduction_factor", "perturb_epochs", "search_seed",
        )
    }  # fmt: skip
    base = trial_base(config)
    mine |= identity(base, data_hash) | {"train.max_epochs": base.train.max_epochs}
    mine["search.space"] = f"{space.name} ({digest(repr(space))[:12]})"
    claim_folder(root, mine, "search")


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep other commands from searching in the same folder.

    Raises:
        StageError: one does already.
    """
    busy = StageError(f"output_dir {root.parent}: another command is searching there")
    with locks.alone(root / "lock", busy):
        yield
