"""A cluster of several hosts: training across them, a node that dies, and what strangers can do.

``python -m benchmarks.reliability`` breaks whole runs in many more ways.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.states import newest_state
from tests.helpers.hosts import Hosts, hosts, why_not
from tests.helpers.ports import REFUSED, listening
from tests.helpers.processes import in_processes
from tests.helpers.small_training import config_of, prepare, session, step_of, train_on
from tests.helpers.training import differences

pytestmark = pytest.mark.timeout(600)

_LONGEST_SECONDS = 240


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, which all hosts see."""
    folder = tmp_path_factory.mktemp("hosts")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with hosts(3) as made:
        made.start_all()
        yield made


def _config(root: Path, name: str) -> RunConfig:
    return config_of(root, name, steps_per_epoch=60, mid_epoch_seconds=300.0)


def _reach(config: RunConfig, step: int, command: subprocess.Popen[str]) -> None:
    end = time.monotonic() + _LONGEST_SECONDS
    while step_of(config) < step:
        assert command.poll() is None, command.communicate()[1]
        assert time.monotonic() < end, f"step {step} was not reached"
        time.sleep(0.05)


@contextmanager
def _ended(command: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        command.kill()


def test_a_node_that_is_told_to_go_and_then_dies_costs_seconds_of_training(
    cluster: Hosts, root: Path
) -> None:
    config, undisturbed = _config(root, "disturbed"), _config(root, "undisturbed")
    command = train_on(cluster, config)
    with command, _ended(command):
        in_processes(2, root, session, undisturbed)
        _reach(config, 10, command)
        host = cluster.busiest()
        folder = RunFolder.of(config)
        # Without the notice there would be no state before the end of the epoch.
        assert newest_state(folder) is None
        notice = cluster.run(
            host,
            "ray",
            "drain-node",
            "--address",
            cluster.head,
            "--node-id",
            cluster.node_id(host),
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
            "120",
        )
        assert notice.returncode == 0, notice.stderr
        end = time.monotonic() + 60
        while newest_state(folder) is None:
            assert time.monotonic() < end, "the notice was not heard"
            time.sleep(0.1)
        cluster.kill(host)
        cluster.start_ray(host)
        _, errors = command.communicate(timeout=_LONGEST_SECONDS)
    assert command.returncode == 0, errors
    assert differences(config, undisturbed) == []
    right = ["-H", f"Authorization: Bearer {cluster.token}"]
    runs = "http://127.0.0.1:8265/api/train/v2/runs/v1"
    shown = json.loads(cluster.run(0, "curl", "-sS", "-m", "30", *right, runs).stdout)
    assert [run["status"] for run in shown["train_runs"]] == ["FINISHED"], "in the dashboard"


@pytest.mark.parametrize("path", ["", "api/version", "api/jobs/", "nodes?view=summary"])
def test_the_dashboard_cannot_be_reached_from_another_host(cluster: Hosts, path: str) -> None:
    done = cluster.run(1, "curl", "-sS", "-m", "20", f"http://{cluster.ip(0)}:8265/{path}")
    assert done.returncode == 7, done.stdout  # refused: it listens on the head's own address alone


_STATUS = ["curl", "-sS", "-m", "30", "-o", "/dev/null", "-w", "%{http_code}"]


def test_on_the_head_itself_the_job_server_wants_the_token(cluster: Hosts) -> None:
    address = "http://127.0.0.1:8265/api/jobs/"
    submit = ["-X", "POST", "-d", '{"entrypoint": "id"}', address]
    assert cluster.run(0, *_STATUS, address).stdout == "401"
    assert cluster.run(0, *_STATUS, *submit).stdout == "401"
    wrong = ["-H", f"Authorization: Bearer {'0' * 32}"]
    assert cluster.run(0, *_STATUS, *wrong, *submit).stdout in {"401", "403"}
    right = ["-H", f"Authorization: Bearer {cluster.token}"]
    assert cluster.run(0, *_STATUS, *right, address).stdout == "200"


_DRIVER = """
import ray, sys, time
ray.init(address=sys.argv[1], log_to_driver=False)
class Actor:
    def here(self): pass
actor = ray.remote(Actor).remote()
ray.get(actor.here.remote())
print("up", flush=True)
time.sleep(600)
"""


def test_every_port_that_other_hosts_reach_wants_the_token(cluster: Hosts) -> None:
    driver = cluster.start(0, "python", "-c", _DRIVER, cluster.head)
    with driver, _ended(driver):
        assert driver.stdout is not None
        assert driver.stdout.readline() == "up\n"
        for host in range(cluster.count):
            ports = list(listening(cluster.processes(host)))
            # GCS, driver and Ray Client's server on the head; two ports of the raylet and of the
            # agent, and the other agent's, on each.
            open_to_others = {port for port in ports if not port.is_loopback}
            assert len(open_to_others) >= (8 if host == 0 else 5)
            numbers = sorted({str(port.number) for port in open_to_others})
            asked = cluster.run(
                (host + 1) % 3, "python", "-m", "tests.helpers.ports", cluster.ip(host), *numbers
            )
            assert asked.returncode == 0, asked.stderr
            answers = json.loads(asked.stdout)
            assert {port: said for port, said in answers.items() if said not in REFUSED} == {}


def test_a_stranger_cannot_join_or_use_the_cluster(cluster: Hosts, tmp_path: Path) -> None:
    program = (
        "import ray, sys\n"
        "try:\n"
        f"    ray.init(address='{cluster.head}', logging_level='ERROR')\n"
        "except Exception as error:\n"
        "    sys.exit(f'refused: {type(error).__name__}: {error}')\n"
        "print('inside')\n"
    )
    stranger = ["env", f"RAY_AUTH_TOKEN={'0' * 32}", "python", "-c", program]
    done = cluster.run(1, *stranger)
    assert "inside" not in done.stdout
    assert done.returncode != 0
