"""Shares of a cluster: what each of several processes may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def share_cpus(nodes: Sequence[float], processes: int) -> float:
    """Return the most CPUs that each process can have when all of them fit on the nodes.

    >>> share_cpus([2], 1), share_cpus([2, 2, 2], 2), share_cpus([4, 8], 3), share_cpus([2], 4)
    (2.0, 2.0, 4.0, 0.5)
    """
    for share in range(int(max(nodes, default=0)), 0, -1):
        if sum(int(cpus) // share for cpus in nodes) >= processes:
            return float(share)
    # Ray counts in steps of 0.0001.
    return math.floor(10_000 * sum(nodes) / processes) / 10_000


def room(nodes: Sequence[Mapping[str, float]], each: Mapping[str, float]) -> int:
    """Return how many processes that hold ``each`` fit on the nodes.

    >>> room([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 5.0}], {"CPU": 2.0})
    4
    """
    return sum(int(min(node.get(name, 0) // n for name, n in each.items())) for node in nodes)
