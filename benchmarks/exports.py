"""Every kind of network exported to ONNX and torch.export: how equal, how large, how long it took.

python -m benchmarks.exports
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lasaft.config import MODULATIONS, ModelConfig
from lasaft.export import FORMATS, export_model
from lasaft.network.model import LaSAFT

_SMALL: dict[str, Any] = {
    "n_fft": 64, "hop_length": 32, "num_frame": 16, "n_blocks": 3, "internal_channels": 4,
    "n_internal_layers": 2, "embedding_dim": 6, "bn_factor": 4, "min_bn_units": 4, "num_tdfs": 3,
    "dk": 5,
}  # fmt: skip
_BLOCKS = ("tfc", "tfc_tdf", "tfc_lasaft", "tfc_lightsaft", "tdf", "tdc")
_FRAMEWORKS = tuple(itertools.product(("complex", "magnitude"), ("mapping", "masking")))
_OTHERS: tuple[dict[str, Any], ...] = (
    {"control_vector_type": "one_hot_mode"},
    {"modulation": "film", "film_type": "simple", "gamma_activation": "sigmoid"},
    {"pocm_type": "naive", "pocm_norm": None, "condition_to": "full"},
    {"bn_factor": None, "tfc_tdf_bias": True},
    {"block": "tfc_lightsaft", "bn_factor": None},
    {"kernel_size_t": 5, "kernel_size_f": 3, "n_blocks": 5, "t_down_layers": (1,)},
    {"n_blocks": 1, "input_channels": 2},
    {"n_blocks": 5, "f_down_layers": (0,), "last_activation": "softmax"},
    {"spec_type": "magnitude", "input_channels": 1, "sources": ("speech",)},
)


def kinds() -> Iterator[dict[str, Any]]:
    """Yield the options of every kind of network."""
    for block, modulation in itertools.product(_BLOCKS, MODULATIONS):
        yield {"block": block, "modulation": modulation}
    for block, (spec_type, mode) in itertools.product(_BLOCKS, _FRAMEWORKS[1:]):
        yield {"block": block, "spec_type": spec_type, "spec_est_mode": mode}
    yield from _OTHERS


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    print(f"{'difference':>10} {'MB':>6} {'s':>6}  format  options")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for options in kinds():
            model = LaSAFT(ModelConfig(**{**_SMALL, **options})).eval()
            for ending in FORMATS:
                start = time.process_time()
                done = export_model(model, Path(folder) / f"network{ending}")
                seconds = time.process_time() - start
                worst = max(worst, done.error)
                row = f"{done.error:10.1e} {done.bytes / 1e6:6.2f} {seconds:6.1f}"
                print(f"{row}  {ending:6}  {options}", flush=True)
    print(f"largest difference, of the output's scale: {worst:.1e}")


if __name__ == "__main__":
    main()
