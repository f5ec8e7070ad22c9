"""The authors' checkpoint files made into ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from lasaft.authors import config_from_authors, from_authors_state_dict
from lasaft.authors_checkpoint import read_authors_checkpoint
from lasaft.checkpoint import save_checkpoint
from lasaft.config import ModelConfig
from lasaft.errors import CheckpointError, ConfigError


def import_checkpoint(
    file: str | Path, folder: str | Path, sources: Sequence[str] | None = None
) -> tuple[str, ModelConfig, list[str]]:
    """Make a checkpoint folder of one of the authors' Lightning files; nothing in it is run.

    Args:
        file: the .ckpt file.
        folder: the checkpoint folder to make.
        sources: names in the order of the condition numbers (default: MUSDB18's).

    Returns:
        The checkpoint's hash, its config, and the names of hyper-parameters that were left out
        because they are objects.

    Raises:
        CheckpointError: the file cannot be read, asks for code, or its weights do not fit its
            hyper-parameters; tensors are listed by their names in the file.
        ConfigError: ``sources`` does not fit the network.
    """
    found = read_authors_checkpoint(file)
    try:
        config = config_from_authors(found.hyper_parameters, found.state_dict)
        weights = from_authors_state_dict(found.state_dict, config)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if sources is not None:
        config = _with_sources(config, sources)
    digest = save_checkpoint(
        folder,
        weights,
        config,
        {
            "imported_from": Path(file).name,
            "sha256": found.sha256,
            "file": found.other,
            "hyper_parameters": found.hyper_parameters,
            "left_out": found.left_out,
        },
    )
    return digest, config, found.left_out


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
