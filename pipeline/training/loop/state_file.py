"""The full state of a training in one file without pickle, published whole or not at all.

The file is safetensors: the tensors of the network and of the optimiser, and in its header the
rest as JSON, with a hash over all of it. One file and one rename: there is no instant without a
whole state on disk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from lasaft.checkpoint import checkpoint_hash, save_tensors
from lasaft.errors import CheckpointError
from lasaft.files import atomic_path
from pipeline.training.loop.ranks import Ranks

FORMAT = 2
# A network file system may show another node an old file for so long.
_SHARED_FOLDER_SECONDS = 60
_START_AGAIN = "remove the file to start again"


@dataclass(frozen=True)
class TrainingState:
    """What is saved: ``progress`` is JSON-like, ``tensors`` (``part/name``) are on the CPU."""

    progress: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def part(self, part: str) -> dict[str, torch.Tensor]:
        """Return the tensors of one network, or of the optimiser, by their own names."""
        start = f"{part}/"
        return {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def copy_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copy a network's parameters and buffers to the CPU's memory."""
    return {name: _plain(value) for name, value in network.state_dict().items()}


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the optimiser's tensors by ``<parameter number>/<name>``, and its plain numbers."""
    tensors, numbers = {}, {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{name}"] = _plain(value)
            elif value is not None:
                numbers[f"{index}/{name}"] = value
    return tensors, numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]
) -> None:
    """Put back what :func:`flatten_optimizer` returned; rates and such stay as they are."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *numbers.items()]:
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def capture_state(
    networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> TrainingState:
    """Copy the whole state to the CPU's memory: later steps do not change the copy.

    Args:
        networks: their parameters and buffers are copied; a name has no slash in it.
        optimizer: its state without the learning rate, which is a function of the step.
        progress: everything else, JSON-like; it is not copied.
    """
    tensors = {
        f"{part}/{name}": value
        for part, network in networks.items()
        for name, value in copy_of(network).items()
    }
    moments, numbers = flatten_optimizer(optimizer)
    tensors |= {f"optimizer/{name}": value for name, value in moments.items()}
    return TrainingState(progress | {"optimizer": numbers}, tensors)


def write_state(path: Path, state: TrainingState) -> None:
    """Write ``state`` to ``path``; an older one there is replaced in one step."""
    progress = {name: value for name, value in state.progress.items() if name != "optimizer"}
    header = {"format": FORMAT, "optimizer": state.progress["optimizer"], "progress": progress}
    text = json.dumps(header)
    metadata = {"state": text, "hash": checkpoint_hash(state.tensors, {"state": text})}
    with atomic_path(path) as temporary:
        save_tensors(state.tensors, temporary, metadata)


def load_state(path: Path) -> TrainingState | None:
    """Return the state in ``path``, None if there is none.

    Raises:
        CheckpointError: the file is damaged or of another format.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata.get("state", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
    except (safetensors.SafetensorError, ValueError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{path}: the training state cannot be read ({error}); {_START_AGAIN}"
        ) from error
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: training state of format {header.get('format')}, allowed: {FORMAT}; "
            f"{_START_AGAIN}"
        )
    if metadata.get("hash") != checkpoint_hash(tensors, {"state": metadata["state"]}):
        raise CheckpointError(
            f"{path}: the training state is damaged: it does not fit its hash; {_START_AGAIN}"
        )
    return TrainingState(header["progress"] | {"optimizer": header["optimizer"]}, tensors)


def load_common_state(path: Path | None, ranks: Ranks) -> TrainingState | None:
    """Return the state in ``path`` once every process sees the same one, None if there is none.

    Raises:
        CheckpointError: as :func:`load_state`, or the processes do not see the same file.
    """
    end = time.monotonic() + _SHARED_FOLDER_SECONDS
    while True:
        state = None if path is None else load_state(path)
        steps = ranks.gather(state.progress["step"] if state else None)
        if len(set(steps)) == 1:
            return state
        if ranks.agree(time.monotonic() > end):
            break
        time.sleep(1)
    raise CheckpointError(
        f"{path}: the processes see states of different steps {steps}; output_dir must be a folder "
        "that all nodes share"
    )


def restore_state(
    state: TrainingState, networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """Put the tensors of ``state`` into ``networks`` and ``optimizer``."""
    for part, network in networks.items():
        network.load_state_dict(state.part(part))
    restore_optimizer(optimizer, state.part("optimizer"), state.progress["optimizer"])
