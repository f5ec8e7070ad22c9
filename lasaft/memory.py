"""How the C library treats the memory of large tensors on a CPU."""

from __future__ import annotations

import ctypes

# glibc's names for its settings (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Keep what is freed for the next tensor, from now on and in the whole process.

    By default glibc gives large blocks back to the system, which has to clear every page of the
    next one: about a fifth of a network's time on a CPU. The process then stays as large as it
    once was, so this is for programs that separate or train and end, not for a library to decide.

    Returns:
        whether the C library knows these settings; if not, nothing has changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20, _MMAP_MAX: 0}
    accepted = [mallopt(name, value) for name, value in settings.items()]
    return all(accepted)
