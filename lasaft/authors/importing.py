"""Makes a checkpoint folder of one of the authors' checkpoint files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from lasaft.authors.file import AuthorsCheckpoint, read_authors_checkpoint
from lasaft.authors.layout import config_from_authors, from_authors_state_dict, second_network
from lasaft.checkpoint import save_checkpoint
from lasaft.config import ModelConfig
from lasaft.errors import CheckpointError, ConfigError
from lasaft.idle_options import without_effect

# What no version of theirs writes, or what their weights tell.
_OURS = {
    "sources", "sample_rate", "block", "modulation", "input_channels", "f_down_layers", "norm",
    "scale_activation", "initializer",
}  # fmt: skip
# What the weights of their second networks do not tell.
_IN_NO_WEIGHT = {
    "hop_length", "num_frame", "spec_est_mode", "first_conv_activation", "tfc_tdf_activation",
    "scale_activation", "last_activation",
}  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """A checkpoint that was made of one of the authors' files."""

    hash: str  # of the checkpoint
    config: ModelConfig  # of its network
    left_out: list[str]  # hyper-parameters that are objects, which no option of the network is
    # Options that the file says nothing of, with the values that were taken.
    assumed: dict[str, Any]


def import_checkpoint(
    file: str | Path, folder: str | Path, sources: Sequence[str] | None = None
) -> Imported:
    """Make a checkpoint folder of one of the authors' Lightning files; nothing in it is run.

    Args:
        sources: names in the order of the condition numbers (default: MUSDB18's).

    Raises:
        CheckpointError: the file cannot be read, asks for code, or its weights do not fit its
            hyper-parameters; tensors are listed by their names in the file.
        ConfigError: ``sources`` does not fit the network.
    """
    found, config, weights = read_authors_network(file)
    if sources is not None:
        config = _with_sources(config, sources)
    origin = {
        "imported_from": Path(file).name,
        "sha256": found.sha256,
        "file": found.other,
        "hyper_parameters": found.hyper_parameters,
        "left_out": found.left_out,
    }
    digest = save_checkpoint(folder, weights, config, _readable(origin))
    unsaid = ModelConfig.model_fields.keys() - found.hyper_parameters.keys() - _OURS
    unsaid = unsaid if found.hyper_parameters else set(_IN_NO_WEIGHT)
    unsaid -= without_effect(config).keys()
    values = config.model_dump()
    # last_activation None stands for what fits the estimate.
    values["last_activation"] = config.resolved_last_activation
    return Imported(digest, config, found.left_out, {name: values[name] for name in sorted(unsaid)})


def read_authors_network(
    file: str | Path,
) -> tuple[AuthorsCheckpoint, ModelConfig, dict[str, Tensor]]:
    """Return what one of the authors' files holds, and the network in it: config and weights.

    Raises:
        CheckpointError: see :func:`import_checkpoint`.
    """
    found = read_authors_checkpoint(file)
    objects = [name for name in found.left_out if name in ModelConfig.model_fields]
    if objects:
        raise CheckpointError(
            f"{file}: hyper-parameters: {', '.join(objects)}: got an object, allowed: a number or "
            "a text"
        )
    try:
        if found.hyper_parameters:
            config = config_from_authors(found.hyper_parameters, found.state_dict)
        else:
            config = second_network(found.state_dict)
        weights = from_authors_state_dict(found.state_dict, config)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return found, config, weights


def _readable(value: Any) -> Any:
    """Return plain values in the form of JSON and Unicode, which lack NaN and half characters."""
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _with_sources(config: ModelConfig, sources: Sequence[str]) -> ModelConfig:
    if len(sources) != len(config.sources):
        raise ConfigError(
            f"sources: got {len(sources)} ({', '.join(sources)}), the network was made for "
            f"{len(config.sources)}"
        )
    try:
        return ModelConfig(**{**config.model_dump(), "sources": tuple(sources)})
    except ValidationError as error:
        raise ConfigError([problem["msg"] for problem in error.errors()]) from error
