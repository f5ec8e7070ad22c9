"""Checkpoints: weights as safetensors and everything else as JSON that a person can read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lasaft.checkpoint_record import CONFIG, FORMAT, WEIGHTS, read_record
from lasaft.config import ModelConfig
from lasaft.device import find_device
from lasaft.errors import CheckpointError
from lasaft.files import atomic_write_json, publish_folder, recover_folder
from lasaft.network.model import LaSAFT

_DROPPINGS = r"\.DS_Store|\._.*|\.nfs.*|Thumbs\.db|desktop\.ini"

# How many names a message lists of each fault.
_LISTED = 20


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds.

    Args:
        state_dict: its weights, on the CPU.
        provenance: where they come from; free, JSON.
        hash: sha256 of the weights and the config: two checkpoints with one hash separate alike.
    """

    config: ModelConfig
    state_dict: dict[str, Tensor]
    provenance: dict[str, Any]
    hash: str


def save_checkpoint(
    folder: str | Path,
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    provenance: Mapping[str, Any],
    *,
    keep_others: bool = False,
) -> str:
    """Write a checkpoint folder, whole or not at all; one that is there is replaced.

    Args:
        folder: made with its parents.
        state_dict: of ``LaSAFT(config)``.
        provenance: where the weights come from; anything that JSON can hold.
        keep_others: what somebody has put beside the checkpoint stays, instead of being an error.

    Returns:
        The checkpoint's hash.

    Raises:
        CheckpointError: the weights do not fit the config, or something else is in ``folder``.
    """
    # Where a link leads; the link stays.
    folder = Path(os.path.realpath(folder))
    if _current_folder().is_relative_to(folder):
        raise CheckpointError(f"{folder}: is the current folder, or around it; give another one")
    check_fits(state_dict, config, f"{folder}: not written")
    recover_folder(folder)
    if not keep_others:
        require_replaceable(folder)
    # safetensors refuses tensors that share memory or are not contiguous.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
    }
    settings = config.model_dump(mode="json")
    digest = checkpoint_hash(tensors, settings)
    with publish_folder(folder) as fresh:
        save_tensors(tensors, fresh / WEIGHTS)
        atomic_write_json(
            fresh / CONFIG,
            {"format": FORMAT, "hash": digest, "model": settings, "provenance": dict(provenance)},
        )
        if keep_others and folder.exists():
            _link_others(folder, fresh)
    return digest


def _link_others(folder: Path, fresh: Path) -> None:
    """Let everything in ``folder`` but the checkpoint itself be in ``fresh`` too."""

    def link(source: str, target: str) -> str:
        try:
            os.link(source, target)
        except OSError:  # some file systems have no links
            shutil.copy2(source, target)
        return target

    def ours(place: str, _: list[str]) -> set[str]:
        return {WEIGHTS, CONFIG} if Path(place) == folder else set()

    shutil.copytree(
        folder, fresh, symlinks=True, ignore=ours, copy_function=link, dirs_exist_ok=True
    )


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with a new file's permissions; its library leaves out all others."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    safetensors.torch.save_file(tensors, path, metadata)
    path.chmod(mode)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder; nothing of it is ever executed.

    Raises:
        CheckpointError: it is missing, damaged, of another format version, or its weights do not
            fit its config; the message names the file and lists tensors by name.
    """
    folder = Path(folder)
    found, config = read_record(folder)
    state_dict = _read_weights(folder / WEIGHTS)
    check_fits(state_dict, config, str(folder / WEIGHTS))
    digest = checkpoint_hash(state_dict, found["model"])
    if found.get("hash", digest) != digest:
        raise CheckpointError(
            f"{folder}: {WEIGHTS} or {CONFIG} was changed after it was written: the hash is "
            f"{digest[:12]}, {CONFIG} says {str(found['hash'])[:12]} "
            "(the command that trained it publishes it again; if it was changed on purpose, take "
            f"the hash out of {CONFIG})"
        )
    return Checkpoint(config, state_dict, found.get("provenance", {}), digest)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> LaSAFT:
    """Return the network of a checkpoint folder with its weights, in eval mode.

    Args:
        folder: the checkpoint's.
        device: where it will run: auto, cpu, cuda, cuda:N or mps.

    Raises:
        CheckpointError: see :func:`load_checkpoint`.
        ConfigError: there is no such device here.
    """
    where = find_device(device)
    return build_model(load_checkpoint(folder), where)


def build_model(checkpoint: Checkpoint, device: str | torch.device = "cpu") -> LaSAFT:
    """Return the network of a checkpoint that has been read, in eval mode."""
    model = LaSAFT(checkpoint.config)
    model.load_state_dict(checkpoint.state_dict)
    return model.to(find_device(device)).eval()


def checkpoint_hash(state_dict: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """Return the sha256 of the weights (names, types, shapes, values) and the settings, in hex.

    Args:
        settings: the network's config as it stands in the file, so that a field that a later
            version adds does not change the hash of what was written before.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(settings, sort_keys=True, ensure_ascii=True).encode())
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_fits(state_dict: Mapping[str, Tensor], config: ModelConfig, where: str) -> None:
    """Raise a CheckpointError that lists what is missing, unexpected or of the wrong shape.

    Args:
        config: of the network that they are for.
        where: what the message begins with.
    """
    wanted = wanted_state_dict(config)
    missing = [name for name in wanted if name not in state_dict]
    unexpected = [name for name in state_dict if name not in wanted]
    wrong = [
        f"{name}: {_looks(state_dict[name])} instead of {_looks(wanted[name])}"
        for name in wanted
        if name in state_dict and _looks(state_dict[name]) != _looks(wanted[name])
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of the wrong shape or type": wrong}
    if any(faults.values()):
        lines = [f"{where}: the weights do not fit the network of the config"]
        for fault, names in faults.items():
            lines += [f"  {len(names)} {fault}:"] if names else []
            lines += [f"    {name}" for name in names[:_LISTED]]
            lines += [f"    and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
        raise CheckpointError("\n".join(lines))


def wanted_state_dict(config: ModelConfig) -> dict[str, Tensor]:
    """Return the state dict of ``LaSAFT(config)`` without values: names, shapes and types.

    Raises:
        CheckpointError: there can be no network of this size.
    """
    try:
        with torch.device("meta"):
            return LaSAFT(config).state_dict()
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes beyond what torch can count
        first = str(error).partition("\n")[0]
        raise CheckpointError(f"the network of the config is too large: {first}") from error


def _looks(tensor: Tensor) -> str:
    # Weights may be kept in another float type than the network's: copying converts them.
    kind = "float" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {list(tensor.shape)}"


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:  # somebody has removed it: there is nothing to protect
        return Path(os.sep)


def require_replaceable(folder: Path) -> None:
    """Refuse to replace anything but an empty folder or one with a checkpoint and nothing else.

    What systems drop into every folder does not count.

    Raises:
        CheckpointError: names what is there.
    """
    if not folder.exists():
        return
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    names = {name for name in there if not re.fullmatch(_DROPPINGS, name)}
    if names and names != {WEIGHTS, CONFIG}:
        others = ", ".join(sorted(names - {WEIGHTS, CONFIG})[:3]) or "half of one"
        raise CheckpointError(
            f"{folder}: is there and holds something else than a checkpoint ({others}), so it is "
            "left alone; move that elsewhere, or give another folder"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing")
    try:
        with path.open("rb"):
            pass  # safetensors would say that it does not exist
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is damaged, it is not safetensors: {error}") from error
