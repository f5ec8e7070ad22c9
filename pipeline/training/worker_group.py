"""Ray's TorchTrainer as this training uses it: nothing started that it does not need."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
)

_ASK_AGAIN_SECONDS = 1.0
_ANSWER_SECONDS = 5.0


class _FixedPolicy(FixedScalingPolicy):
    """One size; the placement group alone asks an autoscaler for it.

    Ray also registers the wish with an actor of its own, whose start took 3 of 16 seconds.
    """

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


class _ElasticPolicy(ElasticScalingPolicy):
    """As many processes as there is room for, of the numbers among which a batch divides."""

    def __init__(self, scaling: ScalingConfig, sizes: Sequence[int]) -> None:
        super().__init__(scaling)
        self._sizes = sizes

    def _get_reserved_resources(self) -> Any:
        """Return what each node has for us now; Ray's own answer can be 20 s older."""
        if time.monotonic() - self._latest_reserved_resources_query_time >= _ASK_AGAIN_SECONDS:
            coordinator: Any = self._autoscaling_coordinator
            answer = coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            try:
                self._latest_reserved_resources = ray.get(answer, timeout=_ANSWER_SECONDS)
            except RayError:
                self._latest_reserved_resources = None  # not known: Ray leaves all as it is
            self._latest_reserved_resources_query_time = time.monotonic()
        return self._latest_reserved_resources

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        room = super()._count_possible_workers(reserved_resources)
        return max((size for size in self._sizes if size <= room), default=0)


class WorkerGroupTrainer(TorchTrainer):
    """A TorchTrainer that starts quickly, leaves Ctrl-C to us and knows which sizes fit.

    Args:
        sizes: the numbers of processes that may train, where ``scaling_config`` is elastic.
        settings: TorchTrainer's own.
    """

    def __init__(self, *settings: Any, sizes: Sequence[int], **more: Any) -> None:
        super().__init__(*settings, **more)
        self._sizes = tuple(sizes)

    def _create_default_callbacks(self) -> list[Any]:
        # Each starts a process of its own, and the first keeps the workers waiting: Ray Data's
        # manager (there are no Ray data sets here), and a cleaner of what a dead controller holds,
        # which the end of a driver frees anyway, but not the end of an actor, such as a trial.
        unused: tuple[type, ...] = (DatasetsCallback,)
        if ray.get_runtime_context().get_actor_id() is None:
            unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in super()._create_default_callbacks() if type(each) not in unused]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        scaling = self.scaling_config
        elastic = scaling.elasticity_enabled
        policy = _ElasticPolicy(scaling, self._sizes) if elastic else _FixedPolicy(scaling)
        return super()._initialize_and_run_controller(**settings | {"scaling_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Do nothing: Ray's own handler ends the process as if all were well."""
