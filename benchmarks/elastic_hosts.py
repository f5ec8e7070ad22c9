"""Trains with a range of processes on hosts that come and go, and shows what it does.

    python -m benchmarks.elastic_hosts

The hosts are network namespaces (root and iproute2 are needed). Training with ``world_size 1:3``
starts on one host; two more come; one of them is killed. Each row: how many processes trained
before and after, after how many seconds the new number took its first step, and how many steps
were taken again. Ends with 1 if the training does not end well.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.kills import WORKER, config_of, prepare, step_of, wait_for
from benchmarks.reliability import busy_host, train_on
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.journal import read_history
from tests.helpers.hosts import Hosts, hosts, why_not

_EPOCHS, _STEPS = 40, 200
_HOURS = 600 / 3600


def workers(cluster: Hosts) -> int:
    """Return how many processes train."""
    return sum(
        WORKER in command
        for host in range(1, cluster.count)
        for command in cluster.commands(host).values()
    )


def main() -> int:
    if (reason := why_not()) is not None:
        sys.exit(f"elastic_hosts: {reason}")
    with tempfile.TemporaryDirectory(prefix="lr", dir="/tmp") as name:
        root = Path(name)
        prepare(root)
        config = config_of(
            root, "elastic", world_size="1:3", batch_size=12, steps_per_epoch=_STEPS,
            max_epochs=_EPOCHS, mid_epoch_seconds=2.0, time_limit_hours=_HOURS,
        )  # fmt: skip
        with hosts(4, root / "ray") as cluster:
            cluster.start_ray(0, num_cpus=0)
            cluster.start_ray(1)
            with train_on(cluster, config) as command:
                try:
                    print("| event | processes | s | steps again |\n|---|---|---|---|")
                    observe(cluster, config, command)
                    _, errors = command.communicate()
                finally:
                    command.kill()
            print(f"\nended with exit code {command.returncode}")
            if command.returncode != 0:
                sys.stderr.write(errors)
                return 1
    told = [r["step"] for r in read_history(RunFolder.of(config).metrics) if r["kind"] == "step"]
    assert told == sorted(set(told)), "a step was told twice"
    return 0


def observe(cluster: Hosts, config: RunConfig, command: subprocess.Popen[str]) -> None:
    """Let hosts come and go; print a row for each event."""

    def going() -> bool:
        assert command.poll() is None, "the training ended: give it more steps"
        return True

    began = time.monotonic()
    wait_for(lambda: going() and step_of(config) > 0, "first step")
    print(
        f"| one host | 0 -> {workers(cluster)} | {time.monotonic() - began:.0f} | 0 |", flush=True
    )
    shown = RunFolder.of(config).training / "progress.json"
    events: list[tuple[str, Callable[[], object], int]] = [
        ("two more hosts come", lambda: [cluster.start_ray(host) for host in (2, 3)], 3),
        ("one is killed", lambda: cluster.kill(busy_host(cluster)), 2),
    ]
    for text, act, wanted in events:
        before = workers(cluster)
        act()
        began, reached = time.monotonic(), 0
        while going() and workers(cluster) == before:
            reached = max(reached, step_of(config))
            time.sleep(0.02)
        shown.unlink(missing_ok=True)
        wait_for(
            lambda wanted=wanted: going() and workers(cluster) == wanted and step_of(config) > 0,
            f"first step of {wanted} processes",
        )
        seconds, again = time.monotonic() - began, max(0, reached - step_of(config) + 1)
        print(f"| {text} | {before} -> {wanted} | {seconds:.0f} | {again} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
