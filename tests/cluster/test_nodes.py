"""A lack of nodes: what is said of it, for how long, and how it ends."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from lasaft.errors import ConfigError
from pipeline.cluster import nodes
from pipeline.cluster.nodes import Lack, patience_seconds, wait_for_room
from pipeline.cluster.resources import Amounts
from pipeline.config import ClusterConfig, RunConfig

HEAD = {"memory": 8e9}
WORKER = {"CPU": 4.0, "GPU": 1.0, "memory": 16e9}


class _Cluster:
    """Nodes and a clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.nodes, self.said = 0.0, [HEAD], list[str]()
        monkeypatch.setattr(nodes.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(nodes, "resources_of_nodes", lambda: self.nodes)
        monkeypatch.setattr(nodes, "say", self.said.append)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> _Cluster:
    return _Cluster(monkeypatch)


def _lack(each: Amounts, count: int, minutes: float = 15) -> Lack:
    return Lack("gpus: got 2", each, count, 60 * minutes, "fewer")


def test_it_is_said_at_once_then_now_and_then_and_ends_in_one_line(cluster: _Cluster) -> None:
    lack = _lack({"CPU": 1.0, "GPU": 1.0}, 2)
    for now in range(900):
        cluster.now = now
        assert lack.look()
        if now == 0:
            assert cluster.said == ["waiting for nodes: 0 of 2 CPUs, 0 of 2 GPUs"]
    assert len(cluster.said) == 30
    cluster.now = 900
    with pytest.raises(ConfigError) as caught:
        lack.look()
    assert str(caught.value) == (
        "gpus: got 2; the Ray cluster has 0 of 2 CPUs, 0 of 2 GPUs, and no node that helps came "
        "within 15 minutes (wait_for_nodes_minutes); allowed: fewer, or what a node type of the "
        "cluster's configuration has (ray status says why nodes do not come)"
    )


def test_each_node_that_helps_gives_the_next_one_its_time(cluster: _Cluster) -> None:
    lack = _lack({"GPU": 1.0}, 3)
    for cluster.now in (0, 899):
        assert lack.look()
    cluster.nodes, cluster.now = [HEAD, WORKER], 900
    assert lack.look()
    assert cluster.said[-1] == "waiting for nodes: 1 of 3 GPUs"
    cluster.now = 1799
    assert lack.look()
    cluster.nodes, cluster.now = [HEAD, *[WORKER] * 3], 1800
    assert not lack.look()
    cluster.nodes, cluster.now = [HEAD], 5000  # they are gone again
    assert lack.look()


def test_nodes_that_go_while_their_folders_are_looked_at_count(
    cluster: _Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody uses them yet; they come again with the work."""

    def come(seconds: float) -> None:
        cluster.nodes, cluster.now = [HEAD, WORKER], cluster.now + seconds

    def go(config: RunConfig) -> None:
        cluster.nodes = [HEAD]

    monkeypatch.setattr(nodes, "_asked", lambda lack: nullcontext())
    monkeypatch.setattr(nodes.time, "sleep", come)
    monkeypatch.setattr(nodes, "require_shared_storage", go)
    assert wait_for_room(RunConfig(), _lack({"CPU": 1.0}, 1)) == [HEAD, WORKER]


def test_where_no_node_can_come_the_error_comes_at_once(cluster: _Cluster) -> None:
    with pytest.raises(
        ConfigError, match=r"^gpus: got 2; the Ray cluster has 0 of 2 GPUs; allowed: fewer$"
    ):
        _lack({"GPU": 1.0}, 2, minutes=0).look()
    assert cluster.said == []


@pytest.mark.parametrize(
    ("each", "said"),
    [
        ({"CPU": 1.0, "memory": 9e9}, "0 of 1 CPU, 8 of 9 GB of memory"),
        ({"CPU": 0.5, "memory": 1.5e9}, "0 of 0.5 CPUs"),
    ],
)
def test_only_what_is_lacking_is_named(cluster: _Cluster, each: Amounts, said: str) -> None:
    assert _lack(each, 1).look()
    assert cluster.said == [f"waiting for nodes: {said}"]


def test_enough_in_all_is_not_enough_where_it_lies_on_several_nodes(cluster: _Cluster) -> None:
    cluster.nodes = [WORKER, WORKER]
    assert _lack({"CPU": 3.0, "memory": 10e9}, 2).look() is False
    assert _lack({"CPU": 8.0}, 1).look()
    assert cluster.said == ["waiting for nodes: room for 0 of 1 x 8 CPUs"]


def test_only_a_cluster_that_is_joined_may_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert patience_seconds(ClusterConfig()) == 0
    assert patience_seconds(ClusterConfig(address="auto")) == 900
    assert patience_seconds(ClusterConfig(address="auto", wait_for_nodes_minutes=0)) == 0
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert patience_seconds(ClusterConfig(wait_for_nodes_minutes=0.5)) == 30
