"""A cluster that begins with no worker: nodes come with the work, go when idle, and come again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cloud import BLIND, start_cloud, started
from tests.helpers.hosts import Hosts, hosts, why_not
from tests.helpers.songs import make_musdb

pytestmark = pytest.mark.timeout(600)

_TYPES = {
    "small": {"CPU": 1, "memory": 2e9},
    BLIND: {"CPU": 1, "memory": 4e9},
}
_DEMO = [
    "--preset", "demo", "--synthetic_train", "2", "--synthetic_valid", "1", "--synthetic_test", "1",
    "--synthetic_seconds", "4", "--steps_per_epoch", "4", "--max_epochs", "2", "--log", "False",
    "--internal_channels", "4", "--n_internal_layers", "1", "--num_tdfs", "2",
]  # fmt: skip


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


def _command(job: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"jobs.{job}", *words]


def _run(cloud: Hosts, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["--json", *_DEMO, "--output_dir", str(output), *more]
    return cloud.run(0, *_command("run", *words))


def test_a_run_brings_nodes_which_go_and_come_again_and_ends_with_the_scores_of_one_machine(
    cloud: Hosts, tmp_path: Path
) -> None:
    done = _run(cloud, tmp_path, "--address", cloud.head)
    assert done.returncode == 0, done.stderr
    assert "waiting for nodes: 0 of 1 CPU\n" in done.stderr
    # A training takes longer to begin than a node may be idle here.
    assert len(started(cloud).read_text().split()) >= 2
    again = _run(cloud, tmp_path, "--num_cpus", "1", "--rerun", "train", "--rerun", "evaluate")
    found = json.loads(again.stdout)
    redone = {step for step, what in found["steps"].items() if what != "skipped"}
    assert {"train", "evaluate"} <= redone
    assert found["scores"] == json.loads(done.stdout)["scores"]


def test_gpus_that_no_type_of_node_has_are_waited_for_and_then_refused(
    cloud: Hosts, tmp_path: Path
) -> None:
    start = time.monotonic()
    wait = ["--wait_for_nodes_minutes", "0.1"]
    done = _run(cloud, tmp_path, "--address", cloud.head, "--gpus", "2", *wait)
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
    ours = ["--address", cloud.head, "--task_memory", "3"]  # more than other nodes have
    done = cloud.run(0, *_command("preprocess", *words, *songs, *ours))
    assert done.returncode == 1, done.stderr
    error = f"preprocess: error: {option}: {folder} is not shared storage: {cloud.ip(1)} {fault}"
    assert done.stderr.splitlines()[-1].startswith(error)
