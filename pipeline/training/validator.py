"""Who validates beside a training on Ray: an actor that has its place as long as training lasts.

As tasks, of Ray Train's ``ValidationConfig`` for example, validations would find their place taken
by a training that has grown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.cluster.shared_storage import require_seen
from pipeline.cluster.store import note_written
from pipeline.config import from_json

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.loop.validating import Found


class Validator:
    """Validates the weights that the first process sends; Ray starts it again where it dies.

    Args:
        known: as the processes that train have it.
        device: where it computes.
    """

    def __init__(self, known: dict[str, Any], device: str) -> None:
        self._known, self._device = known, device

    def ready(self) -> None:
        """Return once there is a place for this process, which has to see the run's folders."""
        require_seen(self._known["folders"])
        note_written(self._known["written"])

    def validate(self, weights: Mapping[str, Tensor], epoch: int) -> Found:
        """Return what :func:`examine` finds for the weights of ``epoch``."""
        import torch

        from pipeline.data.windows.remote import open_shards
        from pipeline.training.loop.process_data import ShardData
        from pipeline.training.loop.randomness import repeatable
        from pipeline.training.loop.ranks import Ranks
        from pipeline.training.loop.validating import examine, network_of

        config = from_json(self._known["config"])
        ranks = Ranks(0, 1, torch.device(self._device))
        with open_shards(config) as shards, repeatable(config.train.deterministic):
            tracks = ShardData(shards, config, ranks).validation_tracks()
            return examine(config, network_of(config, weights, ranks), tracks, ranks, epoch)


class Asked:
    """A validation that the validator's process has been asked for."""

    def __init__(self, validator: Any, weights: Mapping[str, Tensor], epoch: int) -> None:
        self._answer = validator.validate.remote(dict(weights), epoch)

    def wait(self, seconds: float) -> bool:
        """Return whether it has ended, after so many seconds at most."""
        import ray

        return bool(ray.wait([self._answer], timeout=seconds)[0])

    def get(self) -> Found | str:
        """Return what it found, or what its process died of.

        Raises:
            DataError: a shard is damaged.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        from pipeline.training.steering import in_short

        try:
            return ray.get(self._answer)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            return in_short(error)


def start_validator(known: dict[str, Any], variables: dict[str, str]) -> Any:
    """Start a process that validates, and wait until it has its place.

    Args:
        known: ``validator`` is what it holds, by the names that Ray knows.
        variables: the environment of those that train: with other threads, sums would be taken in
            another order.

    Raises:
        UnsharedError: its node does not see the run's folders.
    """
    import ray
    from ray.exceptions import RayTaskError

    held = dict(known["validator"])
    cpus, gpus, memory = (held.pop(name, 0) for name in ("CPU", "GPU", "memory"))
    validator: Any = (
        ray.remote(Validator)
        .options(
            num_cpus=cpus, num_gpus=gpus, memory=memory or None, resources=held,
            max_restarts=-1, max_task_retries=0, runtime_env={"env_vars": variables},
        )
        .remote(known, "cuda" if gpus else "cpu")
    )  # fmt: skip
    try:
        ray.get(validator.ready.options(max_task_retries=-1).remote())
    except RayTaskError as error:
        raise error.cause from error
    return validator
