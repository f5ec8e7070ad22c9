"""Breaks a run on several hosts in many ways, and compares how it ends with the undisturbed run.

    python -m benchmarks.reliability                    every fault, each on a fresh cluster
    python -m benchmarks.reliability --faults node_killed_in_train head_restarted

The hosts are network namespaces of this machine (root and iproute2 are needed); the folder of the
run is their shared storage. A fault passes if the run, or the same command given again, ends with
exactly the scores of the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.kills import command_of
from pipeline.config import ClusterConfig, RunConfig
from tests.helpers.hosts import Hosts, hosts, why_not

_OPTIONS = [
    "--preset", "demo", "--synthetic_train", "2", "--synthetic_valid", "1", "--synthetic_test", "2",
    "--synthetic_seconds", "4", "--steps_per_epoch", "20", "--max_epochs", "3",
    "--mid_epoch_seconds", "2", "--internal_channels", "4", "--n_internal_layers", "1",
    "--num_tdfs", "2", "--world_size", "2", "--json",
]  # fmt: skip
_LONGEST_SECONDS = 900
_SPACE = "options: {lr: [0.002, 0.004]}\n"
_MLFLOW_PORT = 5999


@dataclass
class Run:
    """One run on the hosts: its command, its process and the folder that it fills."""

    hosts: Hosts
    output: Path
    more: list[str]
    process: subprocess.Popen[str] | None = None
    server: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the command on the head's host."""
        command = [sys.executable, "-m", "jobs.run", *_OPTIONS, "--address", self.hosts.head]
        words = [*command, "--output_dir", str(self.output), *self.more]
        self.process = self.hosts.start(0, *words)

    def start_server(self) -> None:
        """Start a tracking server on the head's host, which the run is then told of."""
        address = f"http://{self.hosts.ip(0)}:{_MLFLOW_PORT}"
        folder = self.hosts.folder / "mlflow"
        self.server = self.hosts.start(
            0, sys.executable, "-m", "mlflow", "server", "--host", self.hosts.ip(0), "--port",
            str(_MLFLOW_PORT), "--workers", "1", "--allowed-hosts", f"{self.hosts.ip(0)}:*",
            "--backend-store-uri", f"sqlite:///{folder}.db", "--artifacts-destination", str(folder),
        )  # fmt: skip
        self.more += ["--tracking_uri", address]
        asked = ["curl", "-sf", "--retry", "240", "--retry-all-errors", "--retry-delay", "1"]
        assert self.hosts.run(0, *asked, f"{address}/health").returncode == 0

    def finish(self) -> tuple[int, str, str]:
        """Wait for the command; return exit code, standard output and standard error."""
        assert self.process is not None
        out, errors = self.process.communicate(timeout=_LONGEST_SECONDS)
        return self.process.returncode, out, errors

    def wait_for(self, stage: str) -> None:
        """Wait until a stage works; for training, until some steps are done."""
        stamp, journal = self.output / f"steps/{stage}.json", self.output / "training/metrics.jsonl"
        end = time.monotonic() + _LONGEST_SECONDS
        while time.monotonic() < end:
            assert self.process is not None
            assert self.process.poll() is None, self.process.communicate()[1]
            started = stamp.exists() and json.loads(stamp.read_text())["state"] == "started"
            if started and (stage != "train" or (journal.exists() and journal.stat().st_size)):
                time.sleep(1)
                return
            time.sleep(0.1)
        raise AssertionError(f"{stage} did not start in {_LONGEST_SECONDS} s")


def train_on(hosts: Hosts, config: RunConfig) -> subprocess.Popen[str]:
    """Start a training on the head's host; its processes go where Ray has room for them."""
    anywhere = config.model_copy(update={"cluster": ClusterConfig()})
    return hosts.start(0, *command_of(anywhere), "--address", hosts.head)


def busy_host(hosts: Hosts) -> int:
    """Return a host, not the head's, on which a worker process of Ray uses the CPU most."""

    def seconds(host: int) -> float:
        used = 0.0
        for process, command in hosts.commands(host).items():
            if command.startswith("ray::"):
                with suppress(psutil.NoSuchProcess):  # it has just ended
                    used += psutil.Process(process).cpu_times().user
        return used

    return max(range(1, hosts.count), key=seconds)


def _kill_node(run: Run) -> None:
    host = busy_host(run.hosts)
    run.hosts.kill(host)
    run.hosts.start_ray(host)  # as a cluster launcher replaces it


def _cut_link(run: Run) -> None:
    host = busy_host(run.hosts)
    run.hosts.link(host, "down")
    time.sleep(40)
    run.hosts.link(host, "up")
    time.sleep(5)
    run.hosts.kill(host)  # its raylet gives up by itself after such a time
    run.hosts.start_ray(host)


def _restart_head(run: Run) -> None:
    for host in range(run.hosts.count):
        run.hosts.kill(host)
    for host in range(run.hosts.count):
        run.hosts.start_ray(host, num_cpus=0 if host == 0 else 1)


def _stop_for_a_while(run: Run) -> None:
    processes = run.hosts.processes(busy_host(run.hosts))
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    time.sleep(8)
    for process in processes:
        if Path(f"/proc/{process}").exists():
            os.kill(process, signal.SIGCONT)


def _kill_driver(run: Run) -> None:
    assert run.process is not None
    os.killpg(run.process.pid, signal.SIGKILL)


def _kill_server(run: Run) -> None:
    assert run.server is not None
    os.killpg(run.server.pid, signal.SIGKILL)
    run.server.communicate()


def _fill_disk(run: Run) -> None:
    free = shutil.disk_usage(run.output).free
    (run.output / "filler").write_bytes(b"")
    with (run.output / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - 4096, 1))


@dataclass(frozen=True)
class Fault:
    """One way to disturb a run: what is done, and when."""

    text: str
    stage: str
    inject: Callable[[Run], None]
    small_disk: bool = False
    server: bool = False

    @property
    def searches(self) -> bool:
        """Whether the run has a search in it."""
        return self.stage == "search"


FAULTS = {
    "node_killed_in_preprocess": Fault("a node is killed", "preprocess", _kill_node),
    "node_killed_in_search": Fault("a node is killed", "search", _kill_node),
    "node_killed_in_train": Fault("a node is killed", "train", _kill_node),
    "node_killed_in_evaluate": Fault("a node is killed", "evaluate", _kill_node),
    "driver_killed": Fault("the submitted command is killed", "train", _kill_driver),
    "link_cut": Fault("a node's link is cut for 40 s", "train", _cut_link),
    "head_restarted": Fault("the head and all nodes die, and start again", "train", _restart_head),
    "mlflow_killed": Fault("the MLflow server is killed", "train", _kill_server, server=True),
    "slow_node": Fault("a node stands still for 8 s", "train", _stop_for_a_while),
    "disk_full": Fault("the shared disk is full", "train", _fill_disk, small_disk=True),
}


def disturbed(fault: Fault | None, folder: Path, *, searches: bool = False) -> dict[str, Any]:
    """Run once on fresh hosts, with a fault; return what became of it.

    Args:
        fault: what is done to it (None: nothing).
        folder: short and empty; Ray's files and the run lie in it.
        searches: whether the run has a search in it.

    Returns:
        ``exit_codes`` of the commands, ``scores``, ``seconds``, and ``message``: what the first
        command said last.
    """
    shared, more = folder / "shared", []
    shared.mkdir()
    if fault is not None and fault.small_disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", shared], check=True)
    if searches:
        (shared / "space.yaml").write_text(_SPACE)
        more = ["--space", str(shared / "space.yaml")]
    try:
        with hosts(4, folder / "ray") as cluster:
            for host in range(cluster.count):
                cluster.start_ray(host, num_cpus=0 if host == 0 else 1)
            return _observe(Run(cluster, shared / "run", more), fault)
    finally:
        if shared.is_mount():
            subprocess.run(["umount", "--lazy", shared], check=True)


def _observe(run: Run, fault: Fault | None) -> dict[str, Any]:
    if fault is not None and fault.server:
        run.start_server()
    start = time.monotonic()
    run.start()
    if fault is not None:
        run.wait_for(fault.stage)
        fault.inject(run)
    code, out, errors = run.finish()
    codes = [code]
    said = errors.strip().splitlines()
    if code != 0:
        (run.output / "filler").unlink(missing_ok=True)
        run.start()
        code, out, again = run.finish()
        codes.append(code)
        said += [] if code == 0 else again.strip().splitlines()
    assert code != 0 or out.startswith("{"), f"not a result alone: {out}\n{errors}"
    return {
        "exit_codes": codes,
        "scores": json.loads(out)["scores"] if code == 0 else None,
        "seconds": time.monotonic() - start,
        "message": said[-1] if said and codes != [0] else "",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    names = parser.parse_args().faults
    if (reason := why_not()) is not None:
        sys.exit(f"reliability: {reason}")
    print("| fault | while | ends | s | s undisturbed | scores |\n|---|---|---|---|---|---|")
    truths: dict[bool, dict[str, Any]] = {}
    failed = False
    for name in names:
        fault = FAULTS[name]
        if fault.searches not in truths:
            truths[fault.searches] = _in_folder(None, fault.searches)
        truth = truths[fault.searches]
        try:
            result = _in_folder(fault, fault.searches)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed = True
            print(f"| {fault.text} | {fault.stage} | NO END | - | - | - |", flush=True)
            print(f"reliability: {name}: {error}", file=sys.stderr, flush=True)
            continue
        same = result["scores"] == truth["scores"] is not None
        failed |= not same
        ends = "by itself" if result["exit_codes"] == [0] else "with the same command again"
        print(
            f"| {fault.text} | {fault.stage} | {ends} | {result['seconds']:.0f} | "
            f"{truth['seconds']:.0f} | {'the same' if same else 'DIFFERENT'} |",
            flush=True,
        )
        if result["message"]:
            print(f"reliability: {name}: {result['message']}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _in_folder(fault: Fault | None, searches: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="lr", dir="/tmp") as folder:
        return disturbed(fault, Path(folder), searches=searches)


if __name__ == "__main__":
    sys.exit(main())
