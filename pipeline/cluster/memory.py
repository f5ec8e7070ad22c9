"""What Ray says of a process that it has killed because its node ran out of memory, in one line."""

from __future__ import annotations

import re

_KILLED = re.compile(r"running low on memory|OutOfMemoryError")
_NODE = re.compile(r"was ([\d.]+) ?GB (?:used )?/ ([\d.]+) ?GB")
_TASK = re.compile(r"actual memory used=([\d.]+) ?GB")


def out_of_memory(error: BaseException) -> str | None:
    """Return what was used and what there was, where ``error`` is of lacking memory; else None.

    >>> out_of_memory(RuntimeError("low: running low on memory. It was 9.1GB used / 9.5GB limit"))
    'ran out of memory: 9.1 of 9.5 GB of its node were in use'
    """
    text = f"{type(error).__name__} {error}"
    if not _KILLED.search(text):
        return None
    node, task = _NODE.search(text), _TASK.search(text)
    used = f": {node[1]} of {node[2]} GB of its node were in use" if node else ""
    return f"ran out of memory{used}" + (f", {task[1]} GB by itself" if node and task else "")
