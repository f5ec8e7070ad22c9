"""What the fast form asks of the CPU and the C library."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from lasaft.fast import specialise
from tests.helpers.models import random_spec, small_model


def test_bfloat16_is_float32_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core")
    one, other = (specialise.specialise(model, [1], t) for t in (torch.bfloat16, torch.float32))
    spec = random_spec(model)
    assert torch.equal(one(spec), other(spec))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets an option of glibc")
def test_freed_memory_is_used_again() -> None:
    def pages_cleared() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert len([torch.ones(7, 1024, 1024) for _ in range(3)]) == 3
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    specialise.specialise(small_model(), [0])
    # Three times 28 MB are 21,504 pages, or 42 huge ones. The least of five, because a hole in
    # the heap of a process that has done much may just be too small for one of them.
    assert min(pages_cleared() for _ in range(5)) < 42
