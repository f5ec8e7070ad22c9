"""Google Cloud for Ray's cluster launcher: where there is no spot instance, the same one on demand.

Ray's own provider would ask for the spot instance again and again. Named in cluster.yaml.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

_SPOT = {"provisioningModel", "instanceTerminationAction"}
_NO_SPOT = ("RESOURCE_POOL_EXHAUSTED", "QUOTA_EXCEEDED")


class SpotOrOnDemand(GCPNodeProvider):
    """Ray's provider for Google Cloud, with that one difference."""

    def create_node(
        self, base_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """Start instances and return what Google Cloud said of each, by name."""
        try:
            return super().create_node(base_config, tags, count)
        except Exception as error:  # it has no type of its own
            scheduling = base_config.get("scheduling", {})
            if not (_SPOT & scheduling.keys() and any(word in str(error) for word in _NO_SPOT)):
                raise
            kept = {name: value for name, value in scheduling.items() if name not in _SPOT}
            return super().create_node({**base_config, "scheduling": kept}, tags, count)
