"""Separates a song with our networks, HTDemucs, HDemucs and Open-Unmix: time and memory.

    python -m benchmarks.peers

The others' packages go into a folder of their own below the user's cache, for the torch that is
here; without a network their rows say why they are missing. Weights are random, for all: they
change neither time nor memory. Every system cuts the song into its own windows, without overlap,
in a process of its own; all keep freed memory as ours does, so that networks are compared and not
allocators. They take turns, and the best turn of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.inference import random_model
from benchmarks.measure import (
    Figures,
    Table,
    best_of,
    cpu_name,
    in_own_process,
    peak_bytes,
    timed,
)
from lasaft.fast.onednn import keep_memory
from lasaft.separation.separator import Separator

# Those that separate; what else the packages ask for serves training, files and downloads.
_PACKAGES = ("demucs==4.1.0", "openunmix==1.3.0", "julius==0.2.8", "einops==0.8.2")
_SOURCES = ["drums", "bass", "other", "vocals"]
_RATE = 44100
_SECONDS = 31.2  # four of HTDemucs' windows
PRECISIONS = {"32": "float32", "bf16": "bfloat16"}

# What separates [channel, sample], and the networks that it runs.
System = tuple[Callable[[Tensor], object], nn.Module]


def ours(variant: str, precision: str) -> System:
    """One of our networks, in its fast form."""
    model = random_model(variant)
    separator = Separator(model, 0.0, precision="bf16" if precision == "bf16" else "32")
    return lambda wave: separator.separate(wave, _RATE), model


def demucs(kind: str, precision: str) -> System:
    """HTDemucs or HDemucs as released (hyperparameters of htdemucs and hdemucs_mmi)."""
    from demucs.apply import apply_model  # pyright: ignore[reportMissingImports]
    from demucs.hdemucs import HDemucs  # pyright: ignore[reportMissingImports]
    from demucs.htdemucs import HTDemucs  # pyright: ignore[reportMissingImports]

    if kind == "HTDemucs":
        model = HTDemucs(_SOURCES, bottom_channels=512, dconv_mode=3, segment=7.8)
    else:
        model = HDemucs(_SOURCES)
    model.eval()
    run = partial(apply_model, model, shifts=0, overlap=0.0)
    return _cast(lambda wave: run(wave[None]), precision), model


def open_unmix(kind: str, precision: str) -> System:
    """Open-Unmix hq with its Wiener filter, as released."""
    # Its package resamples files with torchaudio, which not every torch has, and nothing else.
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    from openunmix import umxhq  # pyright: ignore[reportMissingImports]

    model = umxhq(pretrained=False).eval()
    return _cast(lambda wave: model(wave[None]), precision), model


def _cast(run: Callable[[Tensor], object], precision: str) -> Callable[[Tensor], object]:
    def separate(wave: Tensor) -> object:
        half = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
        with torch.no_grad(), half:
            return run(wave)

    return separate


SYSTEMS: dict[str, Callable[[str, str], System]] = {
    "CUNET_TFC_GPoCM_LaSAFT": ours,
    "CUNET_TFC_FiLM": ours,
    "HTDemucs": demucs,
    "HDemucs": demucs,
    "Open-Unmix hq": open_unmix,
}


def installed() -> Path:
    """Return the folder of the others' packages, which are installed if they are not there.

    Raises:
        subprocess.CalledProcessError: pip says why they cannot be had.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "lasaft" / "peers" / "-".join(_PACKAGES).replace("==", "")
    if not folder.is_dir():
        made = folder.with_name(f"{folder.name}.{os.getpid()}")
        words = ("pip", "install", "--quiet", "--no-deps", "--target", str(made), *_PACKAGES)
        command = [sys.executable, "-m", *words]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        made.rename(folder)
    return folder


def measure(name: str, precision: str, threads: int) -> dict[str, float]:
    """Return CPU seconds, memory in GB and parameters of one system in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    keep_memory()
    wave = 0.1 * torch.randn(2, int(_SECONDS * _RATE)).cumsum(-1).sin()
    before = peak_bytes(anew=True)
    separate, model = SYSTEMS[name](name, precision)
    separate(wave[:, : 8 * _RATE])  # warms up
    found = timed(lambda: separate(wave))
    parameters = sum(each.numel() for each in model.parameters())
    return found | {"gb": (peak_bytes() - before) / 1e9, "parameters": float(parameters)}


def compare(threads: int, turns: int) -> None:
    """Print the table."""
    missing, packages = "", None
    try:
        packages = installed()
    except subprocess.CalledProcessError as error:
        said = [*error.stderr.splitlines(), f"pip ended with {error.returncode}"]
        missing = next((line for line in said if line.startswith("ERROR")), said[-1])
    except subprocess.TimeoutExpired:
        missing = "pip took more than 10 minutes"

    def way(name: str, precision: str) -> Figures:
        words = ("--measure", name, "--precision", precision, "--threads", str(threads))
        return in_own_process("benchmarks.peers", *words, threads=threads, packages=packages)

    names = [name for name, build in SYSTEMS.items() if build is ours or not missing]
    ways = {(name, bits): partial(way, name, bits) for name in names for bits in PRECISIONS}
    found = best_of(turns, {" ".join(key): run for key, run in ways.items()})
    print(f"{date.today()}, {cpu_name()}, torch {torch.__version__}, {threads} threads\n")
    head = ("CPU s a second of audio", "of HTDemucs' time", "GB")
    rows = Table("system", "parameters", *(f"{c}, {b}" for b in PRECISIONS.values() for c in head))
    for name in names:
        cells = [f"{found[f'{name} 32']['parameters'] / 1e6:.1f} M"]
        for bits in PRECISIONS:
            one, other = found[f"{name} {bits}"], found.get(f"HTDemucs {bits}")
            share = f"{one['cpu'] / other['cpu']:.2f}" if other else "-"
            cells += [f"{one['cpu'] / _SECONDS:.2f}", share, f"{one['gb']:.2f}"]
        rows.row(name, *cells)
    for name in [name for name in SYSTEMS if name not in names]:
        rows.row(name, f"not measured: its package cannot be installed ({missing})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--measure", choices=SYSTEMS, help="one system alone, printed as JSON")
    parser.add_argument("--precision", choices=PRECISIONS, default="32", help="with --measure")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.precision, options.threads)))
    else:
        compare(options.threads, options.turns)


if __name__ == "__main__":
    main()
