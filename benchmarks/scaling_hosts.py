"""Trains on 1, 2 and 3 hosts of this machine, and compares with what benchmarks.scaling predicts.

    python -m benchmarks.scaling_hosts

The hosts are network namespaces (root and iproute2 are needed). Run it on an idle machine.
They share this machine's cores and memory, which no cluster's do. So a step's own work is measured
with as many trainings at once that know nothing of each other; what training together adds is
predicted from the bytes of a sum and the latency between the same hosts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

from benchmarks.measure import Table
from benchmarks.scaling import Machines, Work, predict
from lasaft.network.model import LaSAFT
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.journal import read_history
from tests.helpers.hosts import Hosts, hosts, why_not
from tests.helpers.small_training import config_of, prepare, train_on

_WINDOWS = 12  # of a process in a step


def measure(cluster: Hosts, steps: int) -> None:
    """Train on 1, 2 and 3 hosts; print measured beside predicted times of a step."""
    rate, latency = network_of(cluster)

    def training(name: str, world: int) -> RunConfig:
        size = {"world_size": world, "batch_size": _WINDOWS * world, "steps_per_epoch": steps}
        return config_of(cluster.shared, name, max_epochs=1, mid_epoch_seconds=300.0, **size)

    parameters = sum(each.numel() for each in LaSAFT(training("any", 1).model).parameters())
    machines = Machines(1, rate, latency, 1e9, 1e9, 0.0, 0.0)
    rows = Table("hosts", "step ms, measured", "step ms, predicted")
    for count in (1, 2, 3):
        several = [training(f"{count} {each}", 1) for each in range(count)]
        alone = seconds_of_a_step(cluster, several)
        together = seconds_of_a_step(cluster, [training(f"{count} hosts", count)])
        windows = _WINDOWS * steps * count
        work = Work(alone, 4.0 * parameters, _WINDOWS, windows, 0.0, 0.0, 0.0, 0.0)
        predicted = float(predict(work, machines, count, 1)["step"])
        rows.row(count, f"{1e3 * together:.1f}", f"{1e3 * predicted:.1f}")


def seconds_of_a_step(cluster: Hosts, configs: Sequence[RunConfig]) -> float:
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


def network_of(cluster: Hosts) -> tuple[float, float]:
    """Return the bytes a second and the latency in s of a sum over two hosts, measured."""
    address = f"tcp://{cluster.ip(1)}:29555"
    words = ["python", "-c", _PROBE]
    other = cluster.start(2, *words, "1", address)
    done = cluster.run(1, *words, "0", address)
    other.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    small, large = (float(word) for word in done.stdout.split())
    return 4.0 * 4_000_000 / max(large - small, 1e-6), small / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"scaling_hosts: {reason}")
    with hosts(4) as cluster:
        prepare(cluster.shared)
        cluster.start_all()
        measure(cluster, options.steps)


if __name__ == "__main__":
    main()
