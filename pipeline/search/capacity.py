"""How many trials run at the same time, and what each holds: found from the cluster's nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lasaft.errors import ConfigError
from pipeline.cluster.connection import living_nodes
from pipeline.cluster.resources import room
from pipeline.config import RunConfig

# What the process beside a trial of several processes holds: Ray refuses 0, and any more could
# keep the last worker from finding a place.
BESIDE = 0.001
# Tune may hold the next trial's such process already, and the last one's still.
_SPARE = 0.01


@dataclass(frozen=True)
class Places:
    """Trials at a time, and what each process of a trial holds."""

    trials: int
    cpus: float
    gpus: float


def find_places(config: RunConfig, wanted: int | None) -> Places:
    """Return the places for trials on the cluster; call while connected.

    Args:
        config: processes of a trial, what they hold, the limit of trials at a time.
        wanted: how many trials there are to run, None if nobody knows.

    Raises:
        ConfigError: there is no room for a single trial.
    """
    nodes = [node["Resources"] for node in living_nodes()]
    return share_places(config, nodes, wanted)


def gpus_of_a_trial(config: RunConfig) -> float:
    """Return the GPUs that one trial holds, all its processes together."""
    train = config.train
    each = 1.0 if train.gpus else config.search.trial_gpus or train.resources.get("GPU", 0.0)
    return each * train.processes


def share_places(
    config: RunConfig, nodes: Sequence[Mapping[str, float]], wanted: int | None
) -> Places:
    """Return the places on ``nodes``, each with its resources; see :func:`find_places`."""
    train, search = config.train, config.search
    cpus, processes = train.resources.get("CPU"), train.processes
    gpus = gpus_of_a_trial(config) / processes
    # Without GPUs and without a word about CPUs, a process takes one of them, or what there is.
    least = cpus or (min(1.0, sum(node.get("CPU", 0) for node in nodes) / processes))
    beside = _SPARE if processes > 1 and not cpus else 0.0
    least = math.floor(10_000 * (least - beside)) / 10_000
    if gpus and not cpus:
        least = min(least, 0.5)
    each = {"CPU": least} | ({"GPU": gpus} if gpus else {})
    trials = min(
        room(nodes, each) // processes,
        search.max_concurrent_trials or 10**6,
        max(1, wanted or 10**6),
    )
    if least <= 0 or trials < 1:
        held = ", ".join(
            f"{sum(node.get(name, 0) for node in nodes):g} {name}" for name in ("CPU", "GPU")
        )
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
