"""A search's folder belongs to one search, and to one command at a time."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lasaft.errors import ConfigError, StageError
from lasaft.files import atomic_write_json
from pipeline.config import RunConfig
from pipeline.fingerprints import digest
from pipeline.folders import RunFolder
from pipeline.search.check import trial_base
from pipeline.search.space import Space
from pipeline.training.identity import identity


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
    file = root / "identity.json"
    if not file.exists():
        atomic_write_json(file, mine)
        return
    other = json.loads(file.read_bytes())
    names = sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
    if names:
        raise ConfigError(
            [
                f"{name.rpartition('.')[2]}: got {mine.get(name)!r}, but the search in {root} has "
                f"{other.get(name)!r}; allowed: that value, or another output_dir"
                for name in names
            ]
        )


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep other commands from searching in the same folder.

    Raises:
        StageError: one does already.
    """
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        file = stack.enter_context((root / "lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(
                f"output_dir {root.parent}: another command is searching there"
            ) from None
        yield
