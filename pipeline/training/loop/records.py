"""What a training records of itself: its provenance and its result."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lasaft
from pipeline.config import RunConfig, without_secrets

_PACKAGES = ("torch", "numpy", "ray", "pyarrow", "safetensors")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    versions = {"python": platform.python_version(), "lasaft": lasaft.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def git_commit() -> str | None:
    """Return the commit of the code, with ``+changes`` where files differ; None outside git."""
    root = Path(__file__).resolve().parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def provenance(config: RunConfig, data_hash: str) -> dict[str, Any]:
    """Return the part of a checkpoint's record that does not change during a training."""
    return {
        "data_hash": data_hash,
        "git_commit": git_commit(),
        "packages": package_versions(),
        "config": without_secrets(config).model_dump(mode="json"),
    }


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a whole training, over all its interruptions."""

    checkpoint: Path  # folder of the best model
    best_epoch: int  # its epoch, from 0
    best_val_loss: float | None  # its validation loss; None if that was never a finite number
    # The SDR of each target over the validation tracks at that epoch, in dB.
    val_sdr: dict[str, float | None]
    epochs: int  # how many were trained
    steps: int  # how many were trained
    skipped_steps: int  # without an update, because loss or gradient was not finite
    seconds: float  # time in training and validation
    data_wait_share: float  # share of the time in training steps spent waiting for data
    reason: str  # why training ended
    notes: tuple[str, ...] = ()  # what a person should know, one sentence each
    timed_out: bool = False  # cut short by time_limit_hours: with more time it goes on

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-like form."""
        return asdict(self) | {"checkpoint": str(self.checkpoint), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainResult:
        """Return the result that :meth:`to_json` wrote."""
        parts = value | {"checkpoint": Path(value["checkpoint"]), "notes": tuple(value["notes"])}
        return cls(**parts)
