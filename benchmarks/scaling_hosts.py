"""Trains on 1, 2 and 3 hosts of this machine, and compares with what benchmarks.scaling predicts.

    python -m benchmarks.scaling_hosts

The hosts are network namespaces (root and iproute2 are needed). Run it on an idle machine.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.kills import config_of, prepare
from benchmarks.reliability import train_on
from benchmarks.scaling import Machines, Work, predict
from lasaft.network.model import LaSAFT
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.journal import read_history
from tests.helpers.hosts import Hosts, hosts, why_not


def check(steps: int) -> list[str]:
    """Train on 1, 2 and 3 hosts of this machine; return measured beside predicted times of a step.

    The hosts share this machine's cores and memory, which no cluster's do. So a step's own work is
    measured with as many trainings at once that know nothing of each other; what training together
    adds is predicted from the bytes of a sum and the latency between the same hosts.
    """
    together, alone = {}, {}
    with tempfile.TemporaryDirectory(prefix="lr", dir="/tmp") as name:
        root = Path(name)
        prepare(root)
        with hosts(4, root / "ray") as cluster:
            for host in range(cluster.count):
                cluster.start_ray(host, num_cpus=0 if host == 0 else 1)
            for count in (1, 2, 3):
                several = [_config(root, f"{count} {each}", 1, steps) for each in range(count)]
                alone[count] = _seconds_of_a_step(cluster, several)
                together[count] = _seconds_of_a_step(
                    cluster, [_config(root, f"{count} hosts", count, steps)]
                )
            model = several[0].model
            parameters = sum(each.numel() for each in LaSAFT(model).parameters())
            latency, rate = _network(cluster)
    lines = ["| hosts | step ms, measured | step ms, predicted |", "|---|---|---|"]
    machines = Machines(1, rate, latency, 1e9, 1e9, 0.0, 0.0)
    for count, seconds in together.items():
        work = Work(alone[count], 4.0 * parameters, 12, 12.0 * steps * count, 0.0, 0.0, 0.0)
        found = predict(work, machines, count, 1)
        lines.append(f"| {count} | {1e3 * seconds:.1f} | {1e3 * float(found['step']):.1f} |")
    return lines


def _config(root: Path, name: str, world: int, steps: int) -> RunConfig:
    return config_of(
        root, name, world_size=world, batch_size=12 * world, steps_per_epoch=steps, max_epochs=1,
        mid_epoch_seconds=300.0,
    )  # fmt: skip


def _seconds_of_a_step(cluster: Hosts, configs: Sequence[RunConfig]) -> float:
    """Run these trainings at once; return the mean of their times of a step."""
    commands = [train_on(cluster, config) for config in configs]
    found = []
    for config, command in zip(configs, commands, strict=True):
        _, errors = command.communicate(timeout=600)
        assert command.returncode == 0, errors
        records = read_history(RunFolder.of(config).metrics)
        speeds = [r["values"]["speed/steps_per_second"] for r in records if r["kind"] == "speed"]
        found.append(1 / speeds[-1])
    return statistics.mean(found)


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
    print("\n".join(check(steps=300)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
