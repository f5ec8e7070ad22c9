"""Reads the reference implementation's stored outputs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lasaft.authors.layout import config_from_authors, from_authors_state_dict
from lasaft.network.model import LaSAFT
from tests.helpers import ROOT

FOLDER = ROOT / "tests" / "lasaft" / "parity"


class Fixture:
    """One file: its arrays as tensors, its notes, and the reference's state dict."""

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        self.meta: dict[str, Any] = json.loads(str(arrays.pop("meta")))
        index = json.loads(str(arrays.pop("sd_index", "[]")))
        packed = {kind: arrays.pop(f"sd_{kind}", None) for kind in ("float32", "int64")}
        self.state = {
            key: torch.tensor(packed[kind][start : start + int(np.prod(shape))].reshape(shape))
            for key, shape, kind, start in index
        }
        self._arrays = arrays

    def __getitem__(self, name: str) -> Tensor:
        return torch.tensor(self._arrays[name])

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self, prefix: str) -> list[str]:
        """The arrays under ``prefix``."""
        return [name for name in self._arrays if name.startswith(prefix)]

    def waves(self, name: str) -> Tensor:
        """A waveform array as [batch, channel, sample]."""
        return self[name].transpose(1, 2).contiguous()

    def model(self) -> LaSAFT:
        """Our network with the reference's weights, in eval mode."""
        config = config_from_authors(self.meta["config"], variant=self.meta["variant"])
        model = LaSAFT(config)
        model.load_state_dict(from_authors_state_dict(self.state, config))
        return model.eval()


def fixture_names(pattern: str) -> list[str]:
    """The stored files whose names match."""
    return sorted(path.stem for path in FOLDER.glob(f"{pattern}.npz"))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value of the truth."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())
