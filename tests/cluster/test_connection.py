"""Ray is started in spite of a busy machine, or it is said that it was not."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from jobs.cli.command import parse
from lasaft.errors import ConfigError, StageError
from pipeline.cluster import address, connection
from pipeline.cluster.address import named_address, require_cluster
from pipeline.cluster.connection import connected
from pipeline.config import ClusterConfig, RunConfig
from pipeline.config.run import without_effect
from tests.helpers import ROOT

# The words of ray._private.node, whose wait of 30 s cannot be set.
LATE = "The current node timed out during startup. This could happen because some of the raylet"


@pytest.mark.parametrize("late", [0, 1])
def test_a_slow_start_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, late: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = _starts(monkeypatch, late, Exception(LATE))
    with connected(ClusterConfig(dashboard=bool(late)), "to train"):
        assert len(tries) == late + 1
    begins, ends, *more = capsys.readouterr().err.splitlines()
    assert begins == "Ray: starting on this machine to train ..."
    assert re.fullmatch(r"Ray: there after \d+\.\d s", ends)
    told = "Ray: dashboard at http://127.0.0.1:8265; it asks for the token in ~/.ray/auth_token"
    assert more == [told] * late
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


@pytest.mark.parametrize("error", [ConnectionError("it is\n  gone"), RuntimeError("it is gone")])
def test_a_cluster_that_cannot_be_joined_after_all_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is lost at that moment, or its version of Ray is another."""
    tries = _starts(monkeypatch, 99, error)
    monkeypatch.setattr(connection, "require_cluster", lambda named: None)
    with (
        pytest.raises(ConfigError, match=r"^address: got 'a:1', Ray cannot join it: it is gone, "),
        connected(ClusterConfig(address="a:1")),
    ):
        pass
    assert [options["address"] for options in tries] == ["a:1"]


@pytest.mark.parametrize(
    ("option", "environment", "named"),
    [
        (None, None, None), ("local", "a:1", None), (None, "local", None), (None, "a:1", "a:1"),
        ("b:1", "a:1", "b:1"), ("auto", None, "auto"), ("auto", "a:1", "a:1"),
    ],
)  # fmt: skip
def test_the_address_is_the_option_s_or_the_environment_s(
    monkeypatch: pytest.MonkeyPatch, option: str | None, environment: str | None, named: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert named_address(ClusterConfig(address=option)) == named


def test_only_a_cluster_on_this_machine_takes_a_number_of_cpus() -> None:
    for named, idle in ((None, False), ("local", False), ("auto", True)):
        config = RunConfig(cluster=ClusterConfig(address=named))
        assert ("num_cpus" in without_effect(config)) == idle


@pytest.mark.parametrize(
    ("clusters", "latest", "found"),
    [
        (set(), "", "got 'auto', no Ray clusters run on this machine"),
        (set(), "old", "got 'auto' (old), is no HOST:PORT"),
        ({"one"}, "old", "got 'auto' (one), is no HOST:PORT"),
        ({"one", "two"}, "two", "got 'auto' (two), is no HOST:PORT"),
        ({"one", "two"}, "", "got 'auto', 2 Ray clusters run on this machine"),
    ],
)
def test_auto_is_the_one_cluster_of_this_machine_or_the_latest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clusters: set[str], latest: str, found: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(address, "_clusters_here", clusters.copy)
    if latest:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(latest)
    with pytest.raises(ConfigError, match=re.escape(found)):
        require_cluster("auto")


def _starts(
    monkeypatch: pytest.MonkeyPatch, failures: int, error: Exception
) -> list[dict[str, object]]:
    """Make the first so many starts of Ray fail; return the list that each start enters."""
    tries: list[dict[str, object]] = []

    def init(**options: object) -> SimpleNamespace:
        tries.append(options)
        if len(tries) <= failures:
            raise error
        return SimpleNamespace(dashboard_url="127.0.0.1:8265" * bool(options["include_dashboard"]))

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


@pytest.mark.parametrize(
    "given", ["h:99999", "h:abc", "h", "ray://h:1", "http://h:1", "a:s3cret@h:1"]
)
@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_malformed_address_is_told_with_the_other_options(
    tmp_path: Path, given: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given if by == "environment" else "")
    words = ["--address", given] if by == "option" else []
    with pytest.raises(ConfigError, match=r"address: got '.*h.*'.*, allowed: HOST:PORT") as caught:
        parse(["--preset", "demo", "--output_dir", str(tmp_path / "run"), *words], "run")
    assert "s3cret" not in str(caught.value)
    assert not (tmp_path / "run").exists()
