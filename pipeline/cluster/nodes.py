"""Nodes that are still to come: asked for, told of and waited for, for a limited time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lasaft.errors import ConfigError
from pipeline.cluster.address import named_address
from pipeline.cluster.connection import resources_of_nodes
from pipeline.cluster.interrupts import raise_if_received
from pipeline.cluster.progress import say
from pipeline.cluster.resources import Amounts, in_words, quantity, room
from pipeline.cluster.shared_storage import require_shared_storage
from pipeline.config import ClusterConfig, RunConfig

_LOOK_SECONDS = 1.0
_LINE_SECONDS = 30.0


def patience_seconds(config: ClusterConfig) -> float:
    """Return how long to wait for nodes: not at all for those of a cluster that we start here."""
    return 60 * config.wait_for_nodes_minutes if named_address(config) else 0.0


@dataclass
class Lack:
    """Looks whether the living nodes have room; while they have not, it says so, and for how long.

    Only what the nodes have counts, not whether others use it now.
    """

    wanted: str  # how the error begins: the option, or the work, and what it asks for
    each: Amounts  # what each process holds
    count: int  # how many processes there are
    patience: float  # seconds without a node that helps, after which the error comes
    allowed: str = "less, or larger nodes"  # how the error ends

    def __post_init__(self) -> None:
        self.found, self._looked, self._said = 0, -_LOOK_SECONDS, 0.0
        self._since: float | None = None
        self.nodes: Sequence[Amounts] = ()  # what they had at the last look

    def look(self) -> bool:
        """Return whether there is too little room; may be called again and again.

        Raises:
            ConfigError: it has been so for too long.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return self.found < self.count
        self.nodes, before, self._looked = resources_of_nodes(), self.found, now
        self.found = room(self.nodes, self.each)
        if self.found >= self.count:
            self._since = None
            return False
        if self._since is None or self.found > before:
            self._since, self._said = now, now - _LINE_SECONDS
        if now - self._since >= self.patience:
            raise ConfigError(f"{self.wanted}; the Ray cluster has {self._has()}{self._end()}")
        if now - self._said >= _LINE_SECONDS:
            self._said = now
            say(f"waiting for nodes: {self._has()}")
        return True

    def _has(self) -> str:
        """Return how much there is of what is lacking."""
        sums = {name: sum(node.get(name, 0) for node in self.nodes) for name in self.each}
        needs = {name: amount * self.count for name, amount in self.each.items()}
        lacks = [quantity(name, sums[name], n) for name, n in needs.items() if sums[name] < n]
        return ", ".join(lacks) or f"room for {self.found} of {self.count} x {in_words(self.each)}"

    def _end(self) -> str:
        if not self.patience:
            return f"; allowed: {self.allowed}"
        return (
            f", and no node that helps came within {self.patience / 60:g} minutes "
            f"(wait_for_nodes_minutes); allowed: {self.allowed}, or what a node type of the "
            "cluster's configuration has (ray status says why nodes do not come)"
        )


def wait_for_room(config: RunConfig, lack: Lack) -> Sequence[Amounts]:
    """Return what each node has, once they have room; ask Ray for nodes while they have not.

    An idle one may be gone a moment later: it comes again with the work.

    Raises:
        ConfigError: the nodes did not come.
        StageError: those that came do not share the run's folders.
    """
    if lack.look():
        with _asked(lack):
            while lack.look():
                raise_if_received()
                time.sleep(_LOOK_SECONDS)
        require_shared_storage(config)
    return lack.nodes


@contextmanager
def _asked(lack: Lack) -> Iterator[None]:
    """Have an autoscaler see what is lacking, as places that nobody will use."""
    from ray.util import placement_group, remove_placement_group

    group = placement_group([dict(lack.each)] * lack.count)
    try:
        yield
    finally:
        remove_placement_group(group)


def require_places(config: RunConfig) -> None:
    """Wait until the cluster has what training asks for by name, before any work.

    Raises:
        ConfigError: it did not come, or cannot.
    """
    if each := config.train.validator:
        allowed = "less, or validation inline"
        wanted = f"validation_resources: validation takes {in_words(each)}"
        wait_for_room(config, Lack(wanted, each, 1, patience_seconds(config.cluster), allowed))
    require_gpus(config, config.train.extra_processes)


def require_gpus(config: RunConfig, extra: int = 0) -> None:
    """Wait until the cluster has the GPUs that training asks for, and so many more.

    Raises:
        ConfigError: they did not come, or cannot.
    """
    wanted = config.train.gpus
    if wanted:
        allowed = "as many as there are (world_size N trains in N processes on CPUs)"
        patience = patience_seconds(config.cluster)
        beside = ", and validation takes one too" if extra else ""
        said = f"gpus: got {wanted}{beside}"
        lack = Lack(said, {"GPU": 1.0}, wanted + extra, patience, allowed)
        wait_for_room(config, lack)
