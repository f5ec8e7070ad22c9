"""How many trials fit on the cluster at the same time, and what resources each one holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lasaft.errors import ConfigError
from pipeline.cluster.resources import room
from pipeline.config import RunConfig

# CPUs of the process that starts the workers of a trial of several processes: Ray refuses 0, and
# more could keep the last worker from finding a place.
STARTER_CPUS = 0.001
# Several of these may be there at a time: the last trial's still, the next one's already.
_SPARE_CPUS = 0.01


@dataclass(frozen=True)
class Places:
    """Trials at a time, and what each process of a trial holds."""

    trials: int
    cpus: float
    gpus: float


def gpus_of_a_trial(config: RunConfig) -> float:
    """Return the GPUs that one trial holds, in all its processes together."""
    train = config.train
    each = 1.0 if train.gpus else config.search.trial_gpus or train.resources.get("GPU", 0.0)
    return each * train.processes


def share_places(
    config: RunConfig, nodes: Sequence[Mapping[str, float]], wanted: int | None
) -> Places:
    """Return the places for trials on a cluster.

    Args:
        config: the processes of a trial, their resources, the most trials at a time.
        nodes: the resources of each node.
        wanted: how many trials there are to run, None if that is not known.

    Raises:
        ConfigError: there is no room for a single trial.
    """
    train, search = config.train, config.search
    cpus, processes = train.resources.get("CPU"), train.processes
    gpus = gpus_of_a_trial(config) / processes
    # Where no option says how many CPUs, a process takes one, or its share of less.
    least = cpus or min(1.0, sum(node.get("CPU", 0) for node in nodes) / processes)
    beside = _SPARE_CPUS if processes > 1 and not cpus else 0.0
    least = math.floor(10_000 * (least - beside)) / 10_000
    if gpus and not cpus:
        least = min(least, 0.5)
    each = {"CPU": least} | ({"GPU": gpus} if gpus else {})
    most = min(search.max_concurrent_trials or 10**6, max(1, wanted or 10**6))
    trials = min(room(nodes, each) // processes, most)
    if least <= 0 or trials < 1:
        total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        held = ", ".join(f"{amount:g} {name}" for name, amount in total.items())
        asked = ", ".join(f"{amount:g} {name}" for name, amount in each.items())
        raise ConfigError(
            f"{'gpus' if gpus else 'resources_per_worker'}: a trial needs {processes} x ({asked}); "
            f"the Ray cluster has {held} on {len(nodes)} nodes"
        )
    return Places(trials, cpus or _widest(nodes, each, trials * processes, beside), gpus)


def _widest(
    nodes: Sequence[Mapping[str, float]], each: Mapping[str, float], processes: int, beside: float
) -> float:
    """Return the most whole CPUs with which all processes still fit, else what ``each`` has."""
    for cpus in range(int(max(node.get("CPU", 0) for node in nodes)), 0, -1):
        if room(nodes, {**each, "CPU": cpus + beside}) >= processes:
            return float(cpus)
    return each["CPU"]
