"""Where a checkpoint comes from: data, code, packages and settings, as a JSON-like record."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig

_PACKAGES = ("torch", "numpy", "ray", "pyarrow", "safetensors", "lasaft")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    versions = {"python": platform.python_version()}
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
        "config": config.model_dump(mode="json"),
    }
