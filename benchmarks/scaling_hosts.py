"""Trains on 1, 2 and 3 hosts of this machine, and compares with what benchmarks.scaling predicts.

    python -m benchmarks.scaling_hosts

The hosts are network namespaces (root and iproute2 are needed). Run it on an idle machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from benchmarks.kills import config_of, prepare
from benchmarks.scaling import Machines, Work, predict
from lasaft.model import LaSAFT
from pipeline.config import ClusterConfig, RunConfig, to_json
from pipeline.folders import RunFolder
from pipeline.training.history import read_history
from tests.helpers.hosts import Hosts, hosts, why_not


def check(steps: int) -> list[str]:
    """Train on 1, 2 and 3 hosts of this machine; return measured beside predicted times of a step.

    The hosts share this machine's cores: beyond them, a step's own work takes proportionally
    longer. The model's network figure is a sum of the same bytes, measured on the same hosts.
    """
    measured = {}
    with tempfile.TemporaryDirectory(prefix="lr", dir="/tmp") as name:
        root = Path(name)
        prepare(root)
        with hosts(4, root / "ray") as cluster:
            for host in range(cluster.count):
                cluster.start_ray(host, num_cpus=0 if host == 0 else 1)
            for world in (1, 2, 3):
                config = config_of(
                    root, f"hosts {world}", world_size=world, batch_size=12 * world,
                    steps_per_epoch=steps, max_epochs=1, mid_epoch_seconds=300.0,
                ).model_copy(update={"cluster": ClusterConfig()})  # fmt: skip
                file = root / f"{world}.json"
                file.write_text(to_json(config))
                words = ["python", "-m", "jobs.train", "--preset", str(file)]
                done = cluster.run(0, *words, "--address", cluster.head, seconds=600)
                assert done.returncode == 0, done.stderr
                measured[world] = _seconds_of_a_step(config)
            parameters = sum(each.numel() for each in LaSAFT(config.model).parameters())
            latency, rate = _network(cluster)
    lines = ["| hosts | step ms, measured | step ms, predicted |", "|---|---|---|"]
    machines, cores = Machines(1, rate, latency, 1e9, 1e9, 0.0, 0.0), len(os.sched_getaffinity(0))
    for world, seconds in measured.items():
        own = measured[1] * max(1.0, world / cores)
        work = Work(own, 4.0 * parameters, 12, 12.0 * steps * world, 0.0, 0.0, 0.0)
        found = predict(work, machines, world, 1)
        lines.append(f"| {world} | {1e3 * seconds:.1f} | {1e3 * float(found['step']):.1f} |")
    return lines


def _seconds_of_a_step(config: RunConfig) -> float:
    records = read_history(RunFolder.of(config).metrics)
    speeds = [r["values"]["speed/steps_per_second"] for r in records if r["kind"] == "speed"]
    return 1 / speeds[-1]


_PROBE = """
import sys, time, torch
from torch import distributed
rank, address = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
for size in (1, 4_000_000):
    data, times = torch.zeros(size), []
    for _ in range(7):
        start = time.monotonic()
        distributed.all_reduce(data)
        times.append(time.monotonic() - start)
    print(min(times))
"""


def _network(cluster: Hosts) -> tuple[float, float]:
    """Return the latency in s and the bytes a second of a sum over two hosts, measured."""
    address = f"tcp://{cluster.ip(1)}:29555"
    words = ["python", "-c", _PROBE]
    other = cluster.start(2, *words, "1", address)
    done = cluster.run(1, *words, "0", address)
    other.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    small, large = (float(word) for word in done.stdout.split())
    return small / 2, 4.0 * 4_000_000 / max(large - small, 1e-6)


def main() -> int:
    if (reason := why_not()) is not None:
        sys.exit(f"scaling_hosts: {reason}")
    print("\n".join(check(steps=100)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
