"""Folders that nodes share, or do not: found out before any work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lasaft.errors import StageError
from pipeline.cluster import shared_storage
from pipeline.cluster.connection import connected
from pipeline.cluster.fanout import Needs, run_tasks
from pipeline.cluster.shared_storage import (
    UnsharedError,
    require_seen,
    require_shared_storage,
    seen_folders,
    storage_faults,
)
from pipeline.config import ClusterConfig, DataConfig, RunConfig
from pipeline.config.fingerprints import listing_hash

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


def test_a_node_that_has_just_died_is_passed_over_and_one_that_is_silent_named(
    nodes: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(output_dir=tmp_path / "run")
    dead = nodes[0] | {"NodeID": "0" * 56, "NodeManagerAddress": "192.0.2.9"}
    still_known = iter([[*nodes, dead]] * 3)
    monkeypatch.setattr(shared_storage, "living_nodes", lambda: next(still_known, nodes))
    assert storage_faults(config, [*nodes, dead]) == []
    monkeypatch.setattr(shared_storage, "living_nodes", lambda: [*nodes, dead])
    monkeypatch.setattr(shared_storage, "_DEATH_SECONDS", 0.3)
    (fault,) = storage_faults(config, [*nodes, dead])
    assert "not shared storage: 192.0.2.9 does not answer; allowed" in fault


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


def test_songs_that_a_node_does_not_see_are_named(
    nodes: list[dict[str, Any]], tmp_path: Path, apart: Path
) -> None:
    (apart / "train" / "a song").mkdir(parents=True)
    config = RunConfig(output_dir=tmp_path / "run", data=DataConfig(musdb_root=apart))
    (fault,) = storage_faults(config, nodes)
    assert fault == (
        f"musdb_root: {apart} is not shared storage: {nodes[0]['NodeManagerAddress']} lacks what "
        "is in it (2 of 2, the first is 'train'); allowed: a folder that every node mounts at the "
        "same path"
    )


JOINED = ClusterConfig(address="auto")


def test_a_task_on_a_node_that_came_without_the_folder_ends_all_with_its_name(
    nodes: list[dict[str, Any]], apart: Path
) -> None:
    folders = seen_folders(RunConfig(output_dir=apart, cluster=JOINED))
    names = [str(number) for number in range(6)]
    with pytest.raises(UnsharedError) as caught:
        run_tasks(str, [(n,) for n in names], names=names, needs=Needs(10_000_000, folders=folders))
    address = nodes[0]["NodeManagerAddress"]
    fault = f"output_dir: {apart} is not shared storage: {address} does not see it; allowed: "
    assert str(caught.value).startswith(fault)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_keeps_its_mark_which_is_hidden(tmp_path: Path) -> None:
    config = RunConfig(output_dir=tmp_path / "run", cluster=JOINED)
    (seen,) = seen_folders(config)
    assert (seen,) == seen_folders(config)
    require_seen((seen,))
    assert listing_hash(seen.folder) == listing_hash(tmp_path)
    other = RunConfig(output_dir=tmp_path / "other", cluster=JOINED)
    assert seen_folders(other)[0].names != seen.names


def test_a_cluster_on_this_machine_has_nothing_to_share(tmp_path: Path) -> None:
    assert seen_folders(RunConfig(output_dir=tmp_path / "run")) == ()
    assert list(tmp_path.iterdir()) == []
