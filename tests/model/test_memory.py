"""Freed memory is used again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from lasaft.memory import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
def use():
    torch.zeros(2**24)
for _ in range(10):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Page faults of ten tensors of 64 MB, each of them 16384 pages of 4 KB."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_kept_memory_needs_no_new_pages() -> None:
    assert faults("keep") < faults() / 10
