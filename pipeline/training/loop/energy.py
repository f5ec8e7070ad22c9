"""What a training takes of energy, where the machine counts it: GPUs by NVML, CPUs by RAPL."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pipeline.training.loop.ranks import Ranks

_RAPL = Path("/sys/class/powercap")
_NVML = "libnvidia-ml.so.1"
_GPU, _PACKAGES = "GPUs", "CPU packages with all that ran on them"


class Energy:
    """Counts joules, of all processes together at the end of an epoch.

    A GPU's count is of the whole GPU, that of a CPU package of all that runs on it. What an epoch
    took that was cut short before its end is not in it.

    Args:
        device: where this process computes.
        rapl: where Linux shows the counters of CPU packages.
    """

    def __init__(self, device: torch.device, rapl: Path = _RAPL) -> None:
        self._counters = _packages(rapl) | _gpu(device)
        self._last = {name: read() for name, (read, _) in self._counters.items()}
        self._joules = dict.fromkeys(self._counters, 0.0)
        self._total: dict[str, float] = {}  # by kind
        self._unknown = False

    def look(self) -> None:
        """Read the counters; those of CPU packages begin again at zero each half hour or so."""
        for name, (read, span) in self._counters.items():
            with suppress(OSError):  # no counter may end a training
                taken = read() - self._last[name]
                self._joules[name] += taken + (span if taken < 0 else 0)
                self._last[name] += taken

    def add_up(self, ranks: Ranks) -> None:
        """Add what all processes took since the last call; each of them calls it."""
        self.look()
        found: dict[str, float] = {}
        for each in ranks.gather(self._joules):
            self._unknown |= not each
            found |= each  # processes of one machine have its packages in common
        for name, joules in found.items():
            kind = name.partition(" ")[0]
            self._total[kind] = self._total.get(kind, 0.0) + joules
        self._joules = dict.fromkeys(self._counters, 0.0)

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint says of it; nothing where a process could not measure."""
        if self._unknown or not self._total:
            return {}
        kinds = {"gpu": _GPU, "package": _PACKAGES}
        told = " and ".join(kinds[kind] for kind in sorted(self._total))
        return {"joules": round(sum(self._total.values())), "energy_of": told}

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs."""
        return {"total": dict(self._total), "unknown": self._unknown}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on counting; earlier versions have saved nothing, and what they took is unknown."""
        self._total, self._unknown = ({}, True) if state is None else (
            dict(state["total"]), state["unknown"]
        )  # fmt: skip


# What returns joules, and after how many they begin at zero again.
_Counter = tuple[Callable[[], float], float]


def _packages(rapl: Path) -> dict[str, _Counter]:
    """Return the counters of the CPU packages, where this user may read them."""
    found: dict[str, _Counter] = {}
    for folder in sorted(rapl.glob("intel-rapl:[0-9]")):
        file = folder / "energy_uj"
        if os.access(file, os.R_OK):
            span = int((folder / "max_energy_range_uj").read_text()) / 1e6
            name = f"package {os.uname().nodename} {folder.name}"
            found[name] = (lambda file=file: int(file.read_text()) / 1e6), span
    return found


def _gpu(device: torch.device) -> dict[str, _Counter]:
    """Return the counter of a GPU, where the driver has one for it."""
    if device.type != "cuda":
        return {}
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError:
        return {}
    handle, joules = ctypes.c_void_p(), ctypes.c_ulonglong()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"

    def read() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(joules))
        return joules.value / 1e3

    faults = (
        nvml.nvmlInit_v2(),
        nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)),
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(joules)),
    )
    return {} if any(faults) else {f"gpu {uuid}": (read, 0.0)}
