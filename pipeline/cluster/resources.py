"""Shares of a cluster: what each of several processes may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Amounts = Mapping[str, float]  # by the names that Ray knows: CPU, GPU, memory (in bytes)


def share_cpus(
    nodes: Sequence[Amounts], processes: int, beside: Amounts | None = None, spare: float = 0.0
) -> float:
    """Return the most CPUs that each process can have when all of them fit on the nodes.

    Args:
        nodes: what each node has.
        processes: how many there are.
        beside: what each of them holds besides CPUs.
        spare: CPUs that are kept free for each of them.

    >>> share_cpus([{"CPU": 4}, {"CPU": 8}], 3), share_cpus([{"CPU": 2}], 4)
    (4.0, 0.5)
    >>> share_cpus([{"CPU": 64}, {"CPU": 8, "GPU": 1}], 1, {"GPU": 1})
    8.0
    """
    beside = beside or {}
    fit = [node for node in nodes if all(node.get(name, 0) >= n for name, n in beside.items())]
    cpus = [node.get("CPU", 0) for node in fit]
    for share in range(int(max(cpus, default=0)), 0, -1):
        if room(fit, {**beside, "CPU": share + spare}) >= processes:
            return float(share)
    # Ray counts in steps of 0.0001.
    return math.floor(10_000 * sum(cpus) / processes) / 10_000


def room(nodes: Sequence[Amounts], each: Amounts) -> int:
    """Return how many processes that hold ``each`` fit on the nodes.

    >>> room([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 5.0}], {"CPU": 2.0})
    4
    """
    return sum(int(min(node.get(name, 0) // n for name, n in each.items())) for node in nodes)


def without(nodes: Sequence[Amounts], taken: Amounts) -> list[Sequence[Amounts]]:
    """Return what nodes have left where one of them has given ``taken``: each way that there is.

    >>> without([{"CPU": 4}, {"CPU": 1}, {"CPU": 2}], {"CPU": 2})
    [[{'CPU': 2}, {'CPU': 1}, {'CPU': 2}], [{'CPU': 4}, {'CPU': 1}, {'CPU': 0}]]
    """
    ways = []
    for place, node in enumerate(nodes):
        if all(node.get(name, 0) >= amount for name, amount in taken.items()):
            left = {name: amount - taken.get(name, 0) for name, amount in node.items()}
            ways.append([*nodes[:place], left, *nodes[place + 1 :]])
    return ways


def in_words(amounts: Amounts) -> str:
    """Return amounts as people read them.

    >>> in_words({"CPU": 1, "GPU": 2, "memory": 1.5e9})
    '1 CPU, 2 GPUs, 1.5 GB of memory'
    """
    return ", ".join(quantity(name, amount) for name, amount in amounts.items())


def quantity(name: str, *numbers: float) -> str:
    """Return an amount of a resource, or how much of it there is.

    >>> quantity("GPU", 0, 2), quantity("memory", 5e8, 1.5e9)
    ('0 of 2 GPUs', '0.5 of 1.5 GB of memory')
    """
    if name == "memory":
        return " of ".join(f"{number / 1e9:.3g}" for number in numbers) + " GB of memory"
    plural = "s" if name in ("CPU", "GPU") and numbers[-1] != 1 else ""
    return " of ".join(f"{number:g}" for number in numbers) + f" {name}{plural}"
