"""Where the saved states of a training lie: one in its folder, or Ray Train's checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.config.folders import RunFolder


def newest_state(folder: RunFolder) -> Path | None:
    """Return the newest state in a run's folder, None if nothing has been saved."""
    found = [folder.state, *folder.ray_train.glob(f"*/*/{folder.state.name}")]
    return max((p for p in found if p.exists()), key=lambda p: p.stat().st_mtime_ns, default=None)


def drop_states(folder: RunFolder, but: Path | None = None) -> None:
    """Remove all states from a run's folder ``but`` one."""
    if but != folder.state:
        folder.state.unlink(missing_ok=True)
    for checkpoint in folder.ray_train.glob("*/*/"):
        if but is None or checkpoint != but.parent:
            shutil.rmtree(checkpoint, ignore_errors=True)  # Ray Train may be removing it as well
