"""Folders that nodes share, or do not: found out before any work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lasaft.errors import StageError
from pipeline.cluster import shared_storage
from pipeline.cluster.connection import connected
from pipeline.cluster.shared_storage import require_shared_storage, storage_faults
from pipeline.config import ClusterConfig, DataConfig, RunConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[dict[str, Any]]]:
    import ray

    with connected(ClusterConfig(num_cpus=1)):
        yield ray.nodes()


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a path under which this process and Ray's workers see different folders."""
    monkeypatch.setattr(shared_storage, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    return Path("/proc/self/cwd/out")


def test_a_shared_folder_has_no_fault_and_nothing_stays(
    nodes: list[dict[str, Any]], tmp_path: Path
) -> None:
    shards = tmp_path / "elsewhere" / "shards"
    config = RunConfig(output_dir=tmp_path / "runs" / "one", data=DataConfig(shards_dir=shards))
    assert storage_faults(config, nodes) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_node_does_not_see_is_named(
    nodes: list[dict[str, Any]], tmp_path: Path, apart: Path
) -> None:
    config = RunConfig(output_dir=tmp_path / "run", data=DataConfig(shards_dir=apart))
    (fault,) = storage_faults(config, nodes)
    address = nodes[0]["NodeManagerAddress"]
    assert fault.startswith(
        f"shards_dir: {apart} is not shared storage: {address} does not see it; allowed: "
    )
    assert list(tmp_path.iterdir()) == []


def test_several_nodes_must_share_and_one_need_not(
    nodes: list[dict[str, Any]], apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    config = RunConfig(output_dir=apart)
    require_shared_storage(config)
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, *nodes])
    with pytest.raises(StageError, match="output_dir: /proc/self/cwd/out is not shared storage"):
        require_shared_storage(config)


def test_shards_in_an_object_store_need_no_shared_folder(
    nodes: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = RunConfig(output_dir=tmp_path, data=DataConfig(shards_dir="s3://nowhere/shards"))
    assert storage_faults(config, nodes) == []
