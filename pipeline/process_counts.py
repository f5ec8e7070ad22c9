"""How many processes train and what each of them holds: texts, and shares of a cluster."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import TrainConfig

_RANGE = re.compile(r"([1-9][0-9]{0,5}):([1-9][0-9]{0,5})")
_RESOURCE = re.compile(r"([A-Za-z][\w.-]*)=([0-9]{1,18}(?:\.[0-9]{1,4})?)")


def parse_range(world_size: int | str) -> tuple[int, int]:
    """Return the least and the most processes; ``world_size`` has been checked.

    >>> parse_range(2), parse_range("1:4")
    ((2, 2), (1, 4))
    """
    if isinstance(world_size, int):
        return world_size, world_size
    low, _, high = world_size.partition(":")
    return int(low), int(high)


def check_world_size(world_size: int | str) -> int | str:
    """Return ``world_size`` if it is a number of processes, or a range of them.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(world_size, int):
        fits = 1 <= world_size <= 10**6
    else:
        found = _RANGE.fullmatch(world_size)
        fits = found is not None and int(found[1]) <= int(found[2])
    if fits:
        return world_size
    raise ValueError(
        f"world_size: got {world_size!r}, allowed: a whole number of at least 1, or MIN:MAX with "
        "MIN at most MAX, such as 1:4"
    )


def world_sizes(train: TrainConfig) -> tuple[int, ...]:
    """Return the numbers of processes that may train, fewest first; at least one.

    Of a range those count among which a batch divides evenly (all other numbers would change what
    a step computes); if there is none, the largest number stands for the range.
    """
    low, high = parse_range(train.gpus or train.world_size)
    if low == high:
        return (low,)
    parts = range(low, min(high, train.batch_size) + 1)
    fitting = [n for n in parts if not train.batch_size % (n * train.accumulate_grad_batches)]
    return tuple(fitting) or (high,)


def parse_resources(text: str) -> dict[str, float]:
    """Return the amounts in a text such as ``CPU=2,GPU=1``, which are names that Ray knows.

    Raises:
        ValueError: it is not of that form, or an amount is 0.

    >>> parse_resources("CPU=2, GPU=1")
    {'CPU': 2.0, 'GPU': 1.0}
    """
    amounts: dict[str, float] = {}
    for part in text.split(",") if text.strip() else []:
        found = _RESOURCE.fullmatch(part.strip())
        if found is None or not float(found[2]) or found[1] in amounts:
            raise ValueError(
                f"resources_per_worker: got {text!r}, allowed: names of Ray's resources, each once "
                "with an amount above 0, such as CPU=2,GPU=1"
            )
        amounts[found[1]] = float(found[2])
    if amounts.get("GPU", 1) != 1:
        raise ValueError(
            f"resources_per_worker: got {text!r}, allowed: GPU=1 or no GPU, because each process "
            "trains on one device"
        )
    return amounts


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
