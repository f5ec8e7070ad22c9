"""AWS for Ray's cluster launcher: where there is no spot instance, the same one on demand.

Ray's own provider would ask for the spot instance again and again. Named in cluster.yaml.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

_NO_SPOT = {
    "InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
}  # fmt: skip


class SpotOrOnDemand(AWSNodeProvider):
    """Ray's provider for AWS, with that one difference."""

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """Start instances and return them by their ids."""
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as error:
            on_demand = {**node_config}
            if (
                on_demand.pop("InstanceMarketOptions", None) is None
                or error.category not in _NO_SPOT
            ):
                raise
            return super().create_node(on_demand, tags, count)
