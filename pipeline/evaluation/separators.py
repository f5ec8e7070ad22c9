"""Actors that each hold a network on a GPU and separate the tracks that scoring tasks send."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from pipeline.cluster.parcels import Parcel
from pipeline.evaluation.estimates import Network, Waves, device_here, separate

_RESTARTS = 3


class SeparatorActor:
    """A network in a process of its own; Ray starts it again where it dies."""

    def __init__(self, network: Network, parcel: Parcel | None) -> None:
        self._network = network
        self._at_hand = ExitStack()  # for as long as the process lives
        if parcel is not None:
            self._at_hand.enter_context(parcel.unpacked())

    def device(self) -> str:
        """Return where the network runs: ``cuda``, or ``cpu`` where torch finds no CUDA."""
        return device_here()

    def separate(self, mixture: np.ndarray, sample_rate: int, sources: tuple[str, ...]) -> Waves:
        """Return the estimate [channel, sample] of each source of ``mixture``."""
        return separate(self._network, mixture, sample_rate, sources)


@contextmanager
def separators(
    network: Network | None, parcel: Parcel | None = None, share: float = 1.0
) -> Iterator[list[Any]]:
    """Yield an actor for each GPU of the cluster, none where there is no GPU or no network.

    The tasks that decode and score need CPUs alone, so that all cores score while each GPU
    separates one track after the other; they ask an actor for the estimates of their track.

    Args:
        parcel: brings the network to a node that does not see it.
        share: of its GPU that each takes, more than half: two are never on one.
    """
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0)) if network is not None else 0
    kind = ray.remote(SeparatorActor).options(
        num_gpus=share, num_cpus=0, max_restarts=_RESTARTS, max_task_retries=_RESTARTS
    )
    actors: list[Any] = [kind.remote(network, parcel) for _ in range(gpus)]
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def devices(actors: list[Any]) -> list[str]:
    """Return where each actor's network runs."""
    import ray

    return ray.get([actor.device.remote() for actor in actors])
