"""Where networks run: a CPU, a GPU of NVIDIA's, or one of Apple's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lasaft.errors import ConfigError

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"auto|cpu|cuda(?::([0-9]{1,4}))?|mps(?::0)?")


def require_device_name(name: object) -> re.Match[str]:
    """Raise a ConfigError if no machine has a device of this name."""
    if found := _NAME.fullmatch(str(name)):
        return found
    raise ConfigError(f"device: got {str(name)!r}, allowed: auto, cpu, cuda, cuda:N or mps")


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of this name; ``auto`` is the first there is of cuda, mps and cpu.

    Raises:
        ConfigError: there is no such device, or not here.
    """
    import torch

    found = require_device_name(name)
    text, count = str(name), torch.cuda.device_count()
    mps = torch.backends.mps.is_available()
    if text == "auto":
        text = "cuda" if count else "mps" if mps else "cpu"
    if text.startswith("cuda") and int(found[1] or 0) >= count:
        raise ConfigError(f"device: got {text!r}, but {count} CUDA devices can be used here")
    if text.startswith("mps") and not mps:
        raise ConfigError(f"device: got {text!r}, but no GPU of Apple's can be used here")
    return torch.device(text)
