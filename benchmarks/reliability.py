"""Breaks a run on several hosts in many ways, and compares how it ends with the undisturbed run.

    python -m benchmarks.reliability                    every fault, each on a fresh cluster
    python -m benchmarks.reliability --faults node_killed_in_train head_restarted

The hosts are network namespaces of this machine (root and iproute2 are needed, and redis-server for
head_lost); the folder of the run is their shared storage. A fault passes if the run, or the same
command given again, ends with exactly the scores of the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from benchmarks.measure import Table
from tests.helpers.hosts import Hosts, hosts, why_not
from tests.helpers.small_training import wait_for

_COMMAND = shlex.split(
    "-m jobs.run --json --preset demo --synthetic_train 2 --synthetic_valid 1 --synthetic_test 2 "
    "--synthetic_seconds 4 --steps_per_epoch 20 --max_epochs 3 --mid_epoch_seconds 2 "
    "--internal_channels 4 --n_internal_layers 1 --num_tdfs 2 --world_size 2"
)
_SPACE = "options: {lr: [0.002, 0.004]}\n"
_LIMIT_SECONDS = 900.0
_MLFLOW_PORT = 5999


@dataclass
class Run:
    """A run on ``hosts``: its command, given on the head's host, and the folder that it fills."""

    hosts: Hosts
    options: list[str] = field(default_factory=list)
    server: subprocess.Popen[str] | None = None
    head: dict[str, str] = field(default_factory=dict)  # what the head's environment says besides

    def __post_init__(self) -> None:
        self.output = self.hosts.shared / "run"

    def start_redis(self) -> None:
        """Start a Redis on the last host, which keeps the head's records."""
        ip = self.hosts.ip(self.hosts.count - 1)
        words = shlex.split(f"redis-server --bind {ip} --save '' --protected-mode no")
        self.hosts.start(self.hosts.count - 1, *words)
        self.head = {"RAY_REDIS_ADDRESS": f"{ip}:6379"}

    def start(self) -> None:
        """Give the command."""
        place = ["--address", self.hosts.head, "--output_dir", str(self.output)]
        self.process = self.hosts.start(0, sys.executable, *_COMMAND, *place, *self.options)

    def finish(self) -> tuple[int, str, list[str]]:
        """Wait for the command; return its exit code, its output and the lines of its errors."""
        out, errors = self.process.communicate(timeout=_LIMIT_SECONDS)
        return self.process.returncode, out, errors.strip().splitlines()

    def start_server(self) -> None:
        """Start a tracking server on the head's host, and tell the run of it."""
        ip, folder = self.hosts.ip(0), self.hosts.folder / "mlflow"
        command = f"-m mlflow server --host {ip} --port {_MLFLOW_PORT} --workers 1"
        places = f"--backend-store-uri sqlite:///{folder}.db --artifacts-destination {folder}"
        words = [*shlex.split(f"{command} {places}"), "--allowed-hosts", f"{ip}:*"]
        self.server = self.hosts.start(0, sys.executable, *words)
        address = f"http://{ip}:{_MLFLOW_PORT}"
        retry = ["--retry", "240", "--retry-all-errors", "--retry-delay", "1"]
        assert self.hosts.run(0, "curl", "-sf", *retry, f"{address}/health").returncode == 0
        self.options += ["--tracking_uri", address]

    def wait_for(self, stage: str) -> None:
        """Wait until a stage works; for training, until some steps are done."""
        stamp, journal = self.output / f"steps/{stage}.json", self.output / "training/metrics.jsonl"

        def works() -> bool:
            assert self.process.poll() is None, self.process.communicate()[1]
            started = stamp.exists() and json.loads(stamp.read_text())["state"] == "started"
            trained = journal.exists() and journal.stat().st_size > 0
            return started and (trained or stage != "train")

        wait_for(works, f"{stage} that has started", _LIMIT_SECONDS)
        time.sleep(1)


def _kill_node(run: Run, host: int | None = None) -> None:
    host = run.hosts.busiest() if host is None else host
    run.hosts.kill(host)
    run.hosts.start_ray(host)  # as a cluster launcher replaces it


def _cut_link(run: Run) -> None:
    host = run.hosts.busiest()
    run.hosts.link(host, "down")
    time.sleep(40)
    run.hosts.link(host, "up")
    time.sleep(5)
    _kill_node(run, host)  # its raylet gives up by itself after such a time


def _cut_head(run: Run) -> None:
    run.hosts.link(0, "down")
    time.sleep(20)
    run.hosts.link(0, "up")


def _lose_head(run: Run) -> None:
    others = range(1, run.hosts.count)
    nodes = [run.hosts.node_id(host) for host in others]
    run.hosts.kill(0)
    shutil.rmtree(run.hosts.folder / "0")  # another machine has nothing of it
    run.hosts.start_ray(0, **run.head)
    time.sleep(5)
    assert nodes == [run.hosts.node_id(host) for host in others], "the nodes did not outlive it"


def _restart_head(run: Run) -> None:
    for host in range(run.hosts.count):
        run.hosts.kill(host)
    run.hosts.start_all()


def _freeze(run: Run) -> list[int]:
    processes = run.hosts.processes(run.hosts.busiest())
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    return processes


def _stop_for_a_while(run: Run) -> None:
    processes = _freeze(run)
    time.sleep(8)
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def _kill_driver(run: Run) -> None:
    os.killpg(run.process.pid, signal.SIGKILL)


def _kill_server(run: Run) -> None:
    assert run.server is not None
    os.killpg(run.server.pid, signal.SIGKILL)
    run.server.communicate()


def _fill_disk(run: Run) -> None:
    free = shutil.disk_usage(run.output).free
    with (run.output / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - 4096, 1))


@dataclass(frozen=True)
class Fault:
    """One way to disturb a run: what is done, and in which stage."""

    text: str
    stage: str
    inject: Callable[[Run], object]
    small_disk: bool = False
    server: bool = False
    redis: bool = False


FAULTS = {
    "node_killed_in_preprocess": Fault("a node is killed", "preprocess", _kill_node),
    "node_killed_in_search": Fault("a node is killed", "search", _kill_node),
    "node_killed_in_train": Fault("a node is killed", "train", _kill_node),
    "node_killed_in_evaluate": Fault("a node is killed", "evaluate", _kill_node),
    "driver_killed": Fault("the submitted command is killed", "train", _kill_driver),
    "link_cut": Fault("a node's link is cut for 40 s", "train", _cut_link),
    "head_cut": Fault("the head's link is cut for 20 s", "train", _cut_head),
    "frozen_node": Fault("a node stands still for ever", "train", _freeze),
    "head_lost": Fault("the head dies, its records in a Redis", "train", _lose_head, redis=True),
    "head_restarted": Fault("the head and all nodes die, and start again", "train", _restart_head),
    "mlflow_killed": Fault("the MLflow server is killed", "train", _kill_server, server=True),
    "slow_node": Fault("a node stands still for 8 s", "train", _stop_for_a_while),
    "disk_full": Fault("the shared disk is full", "train", _fill_disk, small_disk=True),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a run: how often its command was given, and what the first one said last."""

    scores: Any
    seconds: float
    commands: int
    message: str


@cache
def outcome(fault: Fault | None, *, searches: bool) -> Outcome:
    """Do a run, with a search in it or without, and with a fault or none, on fresh hosts."""
    with hosts(4) as cluster:
        run, shared = Run(cluster), cluster.shared
        if fault and fault.small_disk:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", shared], check=True)
        try:
            if searches:
                (shared / "space.yaml").write_text(_SPACE)
                run.options += ["--space", str(shared / "space.yaml")]
            if fault and fault.redis:
                run.start_redis()
            cluster.start_all(**run.head)
            return _observe(run, fault)
        finally:
            if shared.is_mount():
                subprocess.run(["umount", "--lazy", shared], check=True)


def _observe(run: Run, fault: Fault | None) -> Outcome:
    if fault and fault.server:
        run.start_server()
    start = time.monotonic()
    run.start()
    if fault:
        run.wait_for(fault.stage)
        fault.inject(run)
    code, out, errors = run.finish()
    message, commands = errors[-1] if errors and code else "", 1
    if code:
        (run.output / "filler").unlink(missing_ok=True)
        run.start()
        code, out, errors = run.finish()
        commands = 2
    assert code == 0, f"the same command ended with {code}: {errors[-1:]}"
    assert out.startswith("{"), f"not a result alone: {out}\n{errors}"
    return Outcome(json.loads(out)["scores"], time.monotonic() - start, commands, message)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    names = parser.parse_args().faults
    if (reason := why_not()) is not None:
        sys.exit(f"reliability: {reason}")
    if "head_lost" in names and shutil.which("redis-server") is None:
        parser.error("faults: head_lost needs redis-server")
    rows = Table("fault", "while", "ends", "s", "s undisturbed", "scores")
    failed = False
    for name in names:
        fault = FAULTS[name]
        searches = fault.stage == "search"
        truth = outcome(None, searches=searches)
        try:
            found = outcome(fault, searches=searches)
        except (AssertionError, TimeoutError, subprocess.TimeoutExpired) as error:
            failed = True
            rows.row(fault.text, fault.stage, "NO END", "-", "-", "-")
            print(f"reliability: {name}: {error}", file=sys.stderr, flush=True)
            continue
        same = found.scores == truth.scores
        failed |= not same
        ends = "by itself" if found.commands == 1 else "with the same command again"
        seconds = (f"{found.seconds:.0f}", f"{truth.seconds:.0f}")
        rows.row(fault.text, fault.stage, ends, *seconds, "the same" if same else "DIFFERENT")
        if found.message:
            print(f"reliability: {name}: {found.message}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
