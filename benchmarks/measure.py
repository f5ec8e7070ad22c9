"""How the benchmarks measure: all ways turn by turn, processes of their own, one table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, float]


class Table:
    """A Markdown table that is printed row by row, as the rows become known."""

    def __init__(self, *columns: str) -> None:
        self.row(*columns)
        print("|---" * len(columns) + "|")

    def row(self, *cells: object) -> None:
        """Print a row."""
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def timed(work: Callable[[], object]) -> Figures:
    """Do ``work``; return its seconds by the clock ("wall") and of this process's CPUs ("cpu")."""
    wait_for_gpu = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait_for_gpu()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    wait_for_gpu()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def best_of(turns: int, ways: Mapping[str, Callable[[], Figures]]) -> dict[str, Figures]:
    """Measure every way once a turn; return the smallest of each of its figures.

    The ways take turns because other work on the machine then slows all alike; the smallest
    counts because such work only adds time.
    """
    best: dict[str, Figures] = {name: {} for name in ways}
    for _ in range(turns):
        for name, measure in ways.items():
            for figure, value in measure().items():
                best[name][figure] = min(value, best[name].get(figure, value))
    return best


def in_own_process(module: str, *words: str, threads: int = 1, packages: Path | None = None) -> Any:
    """Run ``python -m module words``; return the JSON that it printed last.

    Args:
        threads: of OpenMP and OpenBLAS.
        packages: a folder of packages that only this process sees, behind its own.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env = os.environ | dict.fromkeys(names, str(threads))
    if packages is not None:
        env["PYTHONPATH"] = os.pathsep.join((*filter(None, [env.get("PYTHONPATH")]), str(packages)))
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def cpu_name() -> str:
    """Return the name of this machine's CPU, and whether it has AMX."""
    text = Path("/proc/cpuinfo").read_text("utf-8")
    found = re.search(r"model name\s*: (.*)", text)
    return f"{found[1] if found else 'CPU'}, {'with' if 'amx_bf16' in text else 'without'} AMX"


def peak_bytes(*, anew: bool = False) -> int:
    """Return the most memory that this process has held; ``anew``: forget it before."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None
    return 1024 * int(found[1])
