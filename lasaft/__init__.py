"""Conditioned music source separation: the LaSAFT family of networks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lasaft import metrics as metrics
    from lasaft.checkpoint import load_model as load_model
    from lasaft.config import ModelConfig as ModelConfig
    from lasaft.export import export_model as export_model
    from lasaft.network.model import LaSAFT as LaSAFT
    from lasaft.separation.separator import Separator as Separator

__version__ = "0.2.0"
# Loaded on first use: `import lasaft` alone must not wait for torch.
_LAZY = {
    "LaSAFT": "lasaft.network.model",
    "ModelConfig": "lasaft.config",
    "Separator": "lasaft.separation.separator",
    "export_model": "lasaft.export",
    "load_model": "lasaft.checkpoint",
}
__all__ = ["LaSAFT", "ModelConfig", "Separator", "export_model", "load_model", "metrics"]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return importlib.import_module("lasaft.metrics")
    if name not in _LAZY:
        raise AttributeError(f"module 'lasaft' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
