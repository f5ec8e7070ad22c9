"""Ray is started in spite of a busy machine, or it is said that it was not."""

from __future__ import annotations

import re

import pytest
import ray

from lasaft.errors import StageError
from pipeline.cluster.connection import connected
from pipeline.config import ClusterConfig
from tests.helpers import ROOT

# The words of ray._private.node, whose wait of 30 s cannot be set.
LATE = "The current node timed out during startup. This could happen because some of the raylet"


@pytest.mark.parametrize("late", [0, 1])
def test_a_slow_start_is_tried_again(monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    tries = _starts(monkeypatch, late, Exception(LATE))
    with connected(ClusterConfig()):
        assert len(tries) == late + 1
    assert {options["address"] for options in tries} == {"local"}


def test_a_machine_that_is_too_busy_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = _starts(monkeypatch, 99, Exception(LATE))
    with (
        pytest.raises(StageError, match=r"Ray did not start .* too busy"),
        connected(ClusterConfig()),
    ):
        pass
    assert len(tries) == 2


def test_any_other_failure_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = _starts(monkeypatch, 99, RuntimeError("no such thing"))
    with pytest.raises(RuntimeError, match="no such thing"), connected(ClusterConfig()):
        pass
    assert len(tries) == 1


def _starts(
    monkeypatch: pytest.MonkeyPatch, failures: int, error: Exception
) -> list[dict[str, object]]:
    """Make the first so many starts of Ray fail; return the list that each start enters."""
    tries: list[dict[str, object]] = []

    def init(**options: object) -> None:
        tries.append(options)
        if len(tries) <= failures:
            raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    return tries


def test_ray_is_used_by_its_public_names_only() -> None:
    """Its private parts change from one minor version to the next."""
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for folder in ("lasaft", "pipeline", "jobs", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\bray(\.\w+)*\._[a-z]", line)
    ]
    assert found == []
