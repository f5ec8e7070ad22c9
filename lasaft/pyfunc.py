"""A trained network behind MLflow's own loader: ``mlflow.pyfunc.load_model`` calls this module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lasaft.checkpoint import load_model
from lasaft.separation.separator import Separator


class SongSeparator:
    """Separates songs at the network's own sample rate."""

    def __init__(self, folder: str | Path) -> None:
        model = load_model(folder)
        self._separator, self._rate = Separator(model), model.config.sample_rate

    def predict(
        self, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Return each source of a mixture, by name.

        Args:
            model_input: float32 waveform [audio channel, sample].
            params: MLflow passes it; there are none.
        """
        stems = self._separator.separate(np.asarray(model_input, np.float32), self._rate)
        return {name: np.asarray(stem) for name, stem in stems.items()}


def _load_pyfunc(data_path: str) -> SongSeparator:
    """Return what answers ``predict``; the name is MLflow's."""
    return SongSeparator(data_path)
