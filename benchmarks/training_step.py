"""Times a training step and its memory: the plain form, ours, and ours in bfloat16.

    python -m benchmarks.training_step --variant CUNET_TFC_GPoCM_LaSAFT --batch_size 2

Every form runs in a process of its own, so that memory peaks are its own. The best of the steps
counts, in CPU time of the process, or on a GPU in time by the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from benchmarks.measure import Table, in_own_process, peak_bytes, timed
from benchmarks.plain import plain_form
from lasaft.config import VARIANTS, ModelConfig
from lasaft.network.losses import build_loss
from lasaft.network.model import LaSAFT

FORMS = ("plain", "ours", "ours, bfloat16")


def measure(form: str, options: argparse.Namespace) -> dict[str, float]:
    """Return seconds, peak memory in GB and loss of a step; the first step warms up."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    config = ModelConfig(**VARIANTS[options.variant])
    model = LaSAFT(config).to(device).train()
    if form == "plain":
        model = plain_form(model)
    loss = build_loss("spec_mse", model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    shape = (options.batch_size, config.spec_channels, config.num_frame, config.bins)
    mixture, target = torch.randn(2, *shape, device=device)
    condition = torch.arange(options.batch_size, device=device) % len(config.sources)
    value = 0.0

    def step() -> None:
        nonlocal value
        with torch.autocast(device.type, torch.bfloat16, enabled=form.endswith("bfloat16")):
            estimate = model.estimate(mixture, condition)
        step_loss = loss(estimate, target, mixture)
        optimizer.zero_grad()
        step_loss.backward()
        optimizer.step()
        value = step_loss.item()

    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated if on_gpu else peak_bytes
    before = peak()
    best = min(timed(step)["wall" if on_gpu else "cpu"] for _ in range(options.steps + 1))
    return {"seconds": best, "gb": (peak() - before) / 1e9, "loss": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", choices=VARIANTS, default="CUNET_TFC_GPoCM_LaSAFT")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--measure", choices=FORMS, help="one form alone, printed as JSON")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("device: got cuda, but torch sees no GPU here")
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    print(f"{options.variant}, batch {options.batch_size}, {options.device}")
    rows = Table("form", "s a step", "times as fast", "peak GB", "share of it", "loss")
    plain: dict[str, Any] = {}
    for form in FORMS:
        found = in_own_process("benchmarks.training_step", *sys.argv[1:], "--measure", form)
        plain = plain or found
        speed, share = plain["seconds"] / found["seconds"], found["gb"] / plain["gb"]
        cells = (found["seconds"], speed, found["gb"], share)
        rows.row(form, *(f"{cell:.2f}" for cell in cells), f"{found['loss']:.6f}")


if __name__ == "__main__":
    main()
