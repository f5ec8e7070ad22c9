"""Trains with a range of processes on hosts that come and go, and shows what it does.

    python -m benchmarks.elastic_hosts

The hosts are network namespaces (root and iproute2 are needed). Training with ``world_size 1:3``
starts on one host; two more come; one of them is killed. Each row: how many processes trained
before and after, after how many seconds the new number took its first step, and how many steps
were taken again. Ends with 1 if the training does not end well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.measure import Table
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.journal import read_history
from tests.helpers.hosts import Hosts, hosts, why_not
from tests.helpers.small_training import (
    config_of,
    forget_step,
    prepare,
    step_of,
    train_on,
    wait_for,
    workers_on,
)


def observe(cluster: Hosts, config: RunConfig, training: subprocess.Popen[str]) -> None:
    """Let hosts come and go; print a row for each event."""

    def has_trained(count: int) -> bool:
        assert training.poll() is None, "the training ended: give it more steps"
        return step_of(config) > 0 and workers_on(cluster) == count

    rows = Table("event", "processes", "s", "steps again")
    events: list[tuple[str, Callable[[], object], int]] = [
        ("one host", lambda: None, 1),
        ("two more hosts come", lambda: [cluster.start_ray(host) for host in (2, 3)], 3),
        ("one is killed", lambda: cluster.kill(cluster.busiest()), 2),
    ]
    for text, act, wanted in events:
        before = workers_on(cluster)
        act()
        began, reached = time.monotonic(), 0
        while workers_on(cluster) == before and training.poll() is None:
            reached = max(reached, step_of(config))
            time.sleep(0.02)
        forget_step(config)
        wait_for(lambda wanted=wanted: has_trained(wanted), f"first step of {wanted} processes")
        seconds, again = time.monotonic() - began, max(0, reached - step_of(config) + 1)
        rows.row(text, f"{before} -> {wanted}", f"{seconds:.0f}", again if before else 0)


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"elastic_hosts: {reason}")
    with hosts(4) as cluster:
        prepare(cluster.shared)
        options = {"world_size": "1:3", "batch_size": 12, "steps_per_epoch": 200, "max_epochs": 40}
        limits = {"mid_epoch_seconds": 2.0, "time_limit_hours": 600 / 3600}
        config = config_of(cluster.shared, "elastic", **options, **limits)
        cluster.start_ray(0)
        cluster.start_ray(1)
        with train_on(cluster, config) as training:
            try:
                observe(cluster, config, training)
                _, errors = training.communicate()
            finally:
                training.kill()
        print(f"\nended with exit code {training.returncode}")
        if training.returncode != 0:
            sys.stderr.write(errors)
            return 1
        history = read_history(RunFolder.of(config).metrics)
        steps = [record["step"] for record in history if record["kind"] == "step"]
        assert steps == sorted(set(steps)), "a step was told twice"
    return 0


if __name__ == "__main__":
    sys.exit(main())
