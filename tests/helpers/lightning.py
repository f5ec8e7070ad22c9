"""Files as the authors' PyTorch Lightning wrote them, old and new, honest and not."""

from __future__ import annotations

import pickle
import sys
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath
from types import ModuleType
from typing import Any

import torch

from tests.helpers.parity import Fixture


@contextmanager
def foreign_classes(*names: str) -> Iterator[list[type]]:
    """Yield classes by dotted names whose modules exist only inside the block."""
    before = dict(sys.modules)
    classes = []
    for name in names:
        module, _, short = name.rpartition(".")
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            package = ".".join(parts[:count])
            sys.modules.setdefault(package, ModuleType(package))
        made = type(short, (dict,) if short == "AttributeDict" else (), {"__module__": module})
        setattr(sys.modules[module], short, made)
        classes.append(made)
    try:
        yield classes
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]


def lightning_content(fixture: Fixture, **others: Any) -> dict[str, Any]:
    """The top level of a Lightning checkpoint with the weights of a stored network."""
    hyper = {**fixture.meta["config"], "tif_init_mode": None, "seed": 2020}
    return {
        "epoch": 3,
        "global_step": 1234,
        "pytorch-lightning_version": "0.9.0",
        "state_dict": torch.nn.Module().state_dict() | fixture.state,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper,
        **others,
    }


def save_old_lightning(path: Path, fixture: Fixture, *, legacy: bool = False) -> Path:
    """Write a file with class keys, pickled losses and hyper-parameters of a class of their own."""
    with foreign_classes(
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "source_separation.losses.Conditional_Spectrogram_Loss",
    ) as (callback, attribute_dict, loss):
        content = lightning_content(fixture)
        thing = loss()
        thing.weight = torch.nn.Parameter(torch.ones(2))
        hyper = attribute_dict(
            content["hyper_parameters"],
            train_loss=thing,
            criterion=torch.nn.MSELoss(),
            optimizer_class=torch.optim.Adam,
            where=PosixPath("etc"),
            options=Namespace(gpus=1),
        )
        content["hyper_parameters"] = hyper
        content["callbacks"] = {callback: {"best_model_score": torch.tensor(0.5), "dirpath": "x"}}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


class Running:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def save_raw_pickle(path: Path, data: bytes) -> Path:
    """Write a torch zip file around the pickle ``data``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


def pickled(value: Any, protocol: int = 2) -> bytes:
    """Pickle a value without tensors."""
    return pickle.dumps(value, protocol)
