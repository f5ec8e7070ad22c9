"""A cluster that begins with no worker: what its nodes lack is said.

That they come with the work, go when idle and come again: tests/workflow/test_workflow_on_ray.py.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cloud import BLIND, start_cloud
from tests.helpers.hosts import Hosts, hosts, why_not
from tests.helpers.songs import make_musdb

pytestmark = pytest.mark.timeout(600)

_TYPES = {
    "small": {"CPU": 1, "memory": 2e9},
    BLIND: {"CPU": 1, "memory": 4e9},
}


@pytest.fixture(scope="module")
def cloud() -> Iterator[Hosts]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with hosts(2) as made:
        start_cloud(made, _TYPES, idle_seconds=3)
        yield made


@pytest.fixture(autouse=True)
def _no_worker_at_first(cloud: Hosts) -> None:
    _wait_for_idle_nodes_to_go(cloud)


def _workers(cloud: Hosts) -> int:
    return sum(bool(cloud.processes(host)) for host in range(1, cloud.count))


def _wait_for_idle_nodes_to_go(cloud: Hosts) -> None:
    end = time.monotonic() + 120
    while _workers(cloud):
        assert time.monotonic() < end, "idle nodes stay"
        time.sleep(0.2)


def _job(cloud: Hosts, job: str, *words: str) -> subprocess.CompletedProcess[str]:
    return cloud.run(0, sys.executable, "-m", f"jobs.{job}", *words, "--address", cloud.head)


def test_gpus_that_no_type_of_node_has_are_waited_for_and_then_refused(
    cloud: Hosts, tmp_path: Path
) -> None:
    start = time.monotonic()
    words = ["--preset", "demo", "--gpus", "2", "--wait_for_nodes_minutes", "0.1"]
    done = _job(cloud, "run", "--output_dir", str(tmp_path), *words)
    assert time.monotonic() - start > 6
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2:] == [
        "waiting for nodes: 0 of 2 GPUs",
        "run: error: gpus: got 2; the Ray cluster has 0 of 2 GPUs, and no node that helps came "
        "within 0.1 minutes (wait_for_nodes_minutes); allowed: as many as there are (world_size N "
        "trains in N processes on CPUs), or what a node type of the cluster's configuration has "
        "(ray status says why nodes do not come)",
    ]


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("output_dir", "does not see it"),
        ("musdb_root", "lacks what is in it ("),
    ],
)
def test_a_node_that_comes_with_an_empty_folder_is_named_with_it(
    cloud: Hosts, tmp_path: Path, option: str, fault: str
) -> None:
    folder = cloud.shared / option
    places = {"output_dir": tmp_path / "run", option: folder}
    if option == "musdb_root":
        make_musdb(folder, train=1, valid=1, test=1, seconds=2.0)
    words = [word for name, place in places.items() for word in (f"--{name}", str(place))]
    songs = ["--synthetic_train", "3"] if option == "output_dir" else []
    memory = ["--task_memory", "3"]  # more than other nodes have
    done = _job(cloud, "preprocess", *words, *songs, *memory)
    assert done.returncode == 1, done.stderr
    error = f"preprocess: error: {option}: {folder} is not shared storage: {cloud.ip(1)} {fault}"
    assert done.stderr.splitlines()[-1].startswith(error)
