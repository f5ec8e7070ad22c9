"""Every kind of network exported to ONNX and torch.export: how equal, how large, how long it took.

    python -m benchmarks.exports

Differences are from the network itself on the same spectrogram, of its largest output.
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

from benchmarks.measure import Table
from lasaft.export import FORMATS, export_model
from lasaft.network.model import LaSAFT
from lasaft.parts import BLOCKS, MODULATIONS
from tests.helpers.models import small_config

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
    blocks = [block for block in BLOCKS if not block.endswith("rnn")]  # which are refused
    for block, modulation in itertools.product(blocks, MODULATIONS):
        yield {"block": block, "modulation": modulation}
    for block, (spec_type, mode) in itertools.product(blocks, _FRAMEWORKS[1:]):
        yield {"block": block, "spec_type": spec_type, "spec_est_mode": mode}
    yield from _OTHERS


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    rows, worst = Table("difference", "MB", "CPU s", "format", "options"), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for options in kinds():
            model = LaSAFT(small_config(**options)).eval()
            for ending in FORMATS:
                start = time.process_time()
                done = export_model(model, Path(folder) / f"network{ending}")
                seconds = time.process_time() - start
                cells = f"{done.error:.1e}", f"{done.bytes / 1e6:.2f}", f"{seconds:.1f}"
                rows.row(*cells, ending, options)
                worst = max(worst, done.error)
    print(f"largest difference, of the output's scale: {worst:.1e}")


if __name__ == "__main__":
    main()
