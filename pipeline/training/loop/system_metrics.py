"""What training takes of the machine: CPU, memory, GPU, under the names that MLflow charts."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil
import torch

_MEGABYTE = 1e6  # as MLflow counts


class Machine:
    """Measures now and then.

    Args:
        device: the GPU that is measured, if it is one.
        every_seconds: the least time from one measurement to the next; MLflow's own is 10 s.
    """

    def __init__(self, device: torch.device, every_seconds: float = 10.0) -> None:
        self._device, self._every = device, every_seconds
        self._last = time.monotonic()
        with suppress(Exception):
            self._network = psutil.net_io_counters()
            psutil.cpu_percent()  # the next call tells the mean since this one

    def measure(self) -> dict[str, float] | None:
        """Return the newest numbers, None if the last ones are new enough.

        What cannot be measured has no curve. Drivers answer with errors of their own kinds for a
        part of a GPU (MIG) and in containers; none of them may end a training.
        """
        now = time.monotonic()
        if now - self._last < self._every:
            return None
        self._last = now
        values: dict[str, float] = {}
        for part in (self._system, self._disk, self._traffic, self._gpu_memory, self._gpu_use):
            with suppress(Exception):
                values |= part()
        return values

    def _system(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_megabytes": psutil.Process().memory_info().rss / _MEGABYTE,
        }

    def _disk(self) -> dict[str, float]:
        disk = psutil.disk_usage(os.sep)
        return {
            "system/disk_usage_percentage": disk.percent,
            "system/disk_usage_megabytes": disk.used / _MEGABYTE,
            "system/disk_available_megabytes": disk.free / _MEGABYTE,
        }

    def _traffic(self) -> dict[str, float]:
        now, begin = psutil.net_io_counters(), self._network
        return {
            "system/network_receive_megabytes": (now.bytes_recv - begin.bytes_recv) / _MEGABYTE,
            "system/network_transmit_megabytes": (now.bytes_sent - begin.bytes_sent) / _MEGABYTE,
        }

    @property
    def _gpu(self) -> str:
        return f"system/gpu_{self._device.index or 0}"

    def _gpu_memory(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info(self._device)
        peak = torch.cuda.max_memory_allocated(self._device)
        return {
            f"{self._gpu}_memory_usage_megabytes": (total - free) / _MEGABYTE,
            f"{self._gpu}_memory_usage_percentage": 100 * (total - free) / total,
            f"{self._gpu}_peak_tensors_megabytes": peak / _MEGABYTE,
        }

    def _gpu_use(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        return {f"{self._gpu}_utilization_percentage": torch.cuda.utilization(self._device)}
