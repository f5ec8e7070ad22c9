"""What training takes of the machine: CPU, memory, GPU, under the names that MLflow charts."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil
import torch

_MEGABYTE = 2**20


class Machine:
    """Measures now and then.

    Args:
        device: the GPU that is measured, if it is one.
        every_seconds: the least time from one measurement to the next; MLflow's own is 10 s.
    """

    def __init__(self, device: torch.device, every_seconds: float = 10.0) -> None:
        self._device, self._every = device, every_seconds
        self._process = psutil.Process()
        self._last = time.monotonic()
        psutil.cpu_percent()  # the next call tells the mean since this one

    def measure(self) -> dict[str, float] | None:
        """Return the newest numbers, None if the last ones are new enough."""
        now = time.monotonic()
        if now - self._last < self._every:
            return None
        self._last = now
        memory = psutil.virtual_memory()
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_megabytes": self._process.memory_info().rss / _MEGABYTE,
        }
        return values | self._gpu()

    def _gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        name = f"system/gpu_{self._device.index or 0}"
        free, total = torch.cuda.mem_get_info(self._device)
        values = {
            f"{name}_memory_usage_megabytes": (total - free) / _MEGABYTE,
            f"{name}_memory_usage_percentage": 100 * (total - free) / total,
            f"{name}_peak_tensors_megabytes": torch.cuda.max_memory_allocated(self._device)
            / _MEGABYTE,
        }
        # It takes nvidia-ml-py and a driver that answers; without them there is no such curve.
        with suppress(ModuleNotFoundError, RuntimeError):
            values[f"{name}_utilization_percentage"] = torch.cuda.utilization(self._device)
        return values
