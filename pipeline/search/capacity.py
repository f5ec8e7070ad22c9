"""How many trials fit on the cluster at the same time, and what resources each one holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cluster.nodes import Lack, patience_seconds
from pipeline.cluster.resources import Amounts, in_words, room, share_cpus
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


def lack_of_a_trial(config: RunConfig, nodes: Sequence[Amounts]) -> Lack:
    """Return what says that there is no room for a single trial.

    Args:
        config: the processes of a trial, and their resources.
        nodes: the resources of each node.
    """
    train, patience = config.train, patience_seconds(config.cluster)
    cpus, processes = train.resources.get("CPU"), train.processes
    gpus = gpus_of_a_trial(config) / processes
    # Where no option says how many CPUs, a process takes one, or its share where no more can come.
    share = sum(node.get("CPU", 0) for node in nodes) / processes
    least = cpus or (1.0 if patience or not share else min(1.0, share))
    least = math.floor(10_000 * (least - _spare(config))) / 10_000
    if gpus and not cpus:
        least = min(least, 0.5)
    each = {"CPU": least} | ({"GPU": gpus} if gpus else {})
    wanted = f"{'gpus' if gpus else 'resources_per_worker'}: a trial needs {processes} x "
    return Lack(f"{wanted}({in_words(each)})", each, processes, patience)


def share_places(config: RunConfig, nodes: Sequence[Amounts], wanted: int | None) -> Places:
    """Return the places for trials on nodes that have room for one.

    Where nodes may still come, ``max_concurrent_trials`` has as many places as it says: those that
    wait are what an autoscaler brings nodes for.

    Args:
        config: the processes of a trial, their resources, the most trials at a time.
        nodes: the resources of each node.
        wanted: how many trials there are to run, None if that is not known.
    """
    train, limit = config.train, config.search.max_concurrent_trials
    lack = lack_of_a_trial(config, nodes)
    fit = room(nodes, lack.each) // lack.count
    most = min(limit or 10**6, max(1, wanted or 10**6))
    trials = most if limit and lack.patience else min(fit, most)
    cpus = train.resources.get("CPU", 0.0)
    if not cpus:
        gpus = {name: amount for name, amount in lack.each.items() if name == "GPU"}
        spare, processes = _spare(config), min(fit, trials) * lack.count
        cpus = share_cpus(nodes, processes, gpus, spare)
        if cpus < 1 or room(nodes, {**gpus, "CPU": cpus + spare}) < processes:
            cpus = lack.each["CPU"]
    return Places(trials, cpus, lack.each.get("GPU", 0.0))


def _spare(config: RunConfig) -> float:
    """Return the CPUs that are kept free beside each process of a trial."""
    return 0.0 if config.train.processes == 1 or "CPU" in config.train.resources else _SPARE_CPUS
