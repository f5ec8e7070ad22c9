"""What a checkpoint folder says of itself, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lasaft.config import ModelConfig
from lasaft.errors import CheckpointError
from lasaft.files import read_steadily

FORMAT = 1
WEIGHTS = "weights.safetensors"
CONFIG = "config.json"


def read_record(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """Return the JSON of a checkpoint folder, and the settings of the network in it.

    Raises:
        CheckpointError: there is no such folder, or the file in it cannot be used.
    """
    if folder.is_file():
        advice = "a checkpoint is a folder"
        if folder.name in (WEIGHTS, CONFIG):
            advice += f", give {folder.parent}"
        elif folder.suffix in (".ckpt", ".pt", ".pth"):
            advice += f"; to make one: lasaft import-checkpoint {folder} FOLDER"
        raise CheckpointError(f"{folder}: is a file: {advice}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such checkpoint folder")
    found = _read_json(folder / CONFIG)
    return found, _read_config(folder / CONFIG, found)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing, so {path.parent} is no checkpoint folder")
    try:
        found = json.loads(read_steadily(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged, it is not JSON: {error}") from error
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: format is {version!r}, this version of lasaft reads {FORMAT}"
        )
    unknown = sorted(set(found) - {"format", "hash", "model", "provenance"})
    if unknown:
        raise CheckpointError(f"{path}: has unknown keys: {', '.join(unknown)}")
    for key in ("model", "provenance"):
        if not isinstance(found.setdefault(key, {}), dict):
            raise CheckpointError(f"{path}: {key} is {found[key]!r:.80}, allowed: an object")
    return found


def _read_config(path: Path, found: dict[str, Any]) -> ModelConfig:
    try:
        # Through JSON: a strict config takes a list for a tuple only there.
        return ModelConfig.model_validate_json(json.dumps(found["model"]))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_problems(error)}") from error


def _problems(error: ValidationError) -> str:
    """Return pydantic's findings as one line each: option, what was got, what is wrong."""
    lines = []
    for found in error.errors(include_url=False):
        option = ".".join(("model", *map(str, found["loc"])))
        lines.append(f"{option}: got {found['input']!r:.80}: {found['msg']}")
    return "\n  ".join(lines)
