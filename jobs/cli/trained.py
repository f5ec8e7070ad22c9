"""Finds what the README's command line has trained: runs by name, kept epochs by number."""

from __future__ import annotations

import re
from pathlib import Path

from lasaft.errors import ConfigError


def find_run(root: Path, run_id: str | None, model: str | None) -> Path:
    """Return the folder ``root/<model>/<run_id>``; the model's name may be left out.

    Raises:
        ConfigError: there is no such run, or more than one.
    """
    runs = sorted(path.parent for path in root.glob("*/*/config.json"))
    shown = ", ".join(f"{path.parent.name}/{path.name}" for path in runs) or "none yet"
    if run_id is None:
        raise ConfigError(f"run_id: needed with mode eval; the runs in {root}: {shown}")
    found = [path for path in runs if path.name == run_id and model in (None, path.parent.name)]
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        raise ConfigError(f"model: needed, because several have a run {run_id}: {names}")
    if not found:
        of_model = f" of {model}" if model else ""
        raise ConfigError(f"run_id: no run {run_id}{of_model} in {root}, which has: {shown}")
    return found[0]


def kept_epoch(checkpoints: Path, epoch: str) -> Path:
    """Return the checkpoint of a kept epoch, named as ``7``, ``epoch=7`` or ``epoch=7.ckpt``.

    Raises:
        ConfigError: it was not kept.
    """
    match = re.fullmatch(r"(?:epoch=)?([0-9]{1,9})(?:\.ckpt)?", epoch)
    kept = {int(path.name[6:]): path for path in checkpoints.glob("epoch=[0-9]*")}
    if match is None or int(match[1]) not in kept:
        names = ", ".join(path.name for _, path in sorted(kept.items()))
        raise ConfigError(
            f"epoch: got {epoch!r}, allowed: one that was kept ({names or 'none was'})"
        )
    return kept[int(match[1])]
