"""Times a training step and its memory: the plain form, ours, and ours in bfloat16.

    python -m benchmarks.training_step --variant CUNET_TFC_GPoCM_LaSAFT --batch_size 2

Every form runs in a process of its own, so that memory peaks are its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from benchmarks.plain import plain_form
from lasaft.config import VARIANTS, ModelConfig
from lasaft.network.losses import build_loss
from lasaft.network.model import LaSAFT

FORMS = ("plain", "ours", "ours, bfloat16")


def measure(form: str, options: argparse.Namespace) -> dict[str, float]:
    """Return seconds and peak memory of a step (the best of several; the first warms up)."""
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
    before, best, value = peak_bytes(device), float("inf"), 0.0
    for _ in range(options.steps + 1):
        start = seconds(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=form.endswith("bfloat16")):
            estimate = model.estimate(mixture, condition)
        step_loss = loss(estimate, target, mixture)
        optimizer.zero_grad()
        step_loss.backward()
        optimizer.step()
        value = step_loss.item()
        best = min(best, seconds(device) - start)
    return {"seconds": best, "gb": (peak_bytes(device) - before) / 1e9, "loss": value}


def seconds(device: torch.device) -> float:
    """Work done: CPU time of this process, or wall time once the GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
    results = {}
    for form in FORMS:
        command = [sys.executable, "-m", "benchmarks.training_step", *sys.argv[1:]]
        done = subprocess.run(
            [*command, "--measure", form], capture_output=True, text=True, check=True
        )
        results[form] = json.loads(done.stdout.splitlines()[-1])
    print(f"{options.variant}, batch {options.batch_size}, {options.device}")
    print("| form | s a step | times as fast | peak GB | share of it | loss |")
    print("|---|---|---|---|---|---|")
    plain = results["plain"]
    for form, found in results.items():
        speed, share = plain["seconds"] / found["seconds"], found["gb"] / plain["gb"]
        row = f"{found['seconds']:.2f} | {speed:.2f} | {found['gb']:.2f} | {share:.2f}"
        print(f"| {form} | {row} | {found['loss']:.6f} |")


if __name__ == "__main__":
    main()
