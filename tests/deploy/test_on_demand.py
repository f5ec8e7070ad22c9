"""Google's machines, where there are no spot ones; tests/deploy/test_ray_up_on_ray.py has AWS's."""

from __future__ import annotations

from typing import Any

import pytest

CAPACITY = {"errors": [{"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": "none left"}]}
SPOT = {
    "machineType": "g2-standard-16",
    "scheduling": {
        "provisioningModel": "SPOT", "instanceTerminationAction": "DELETE",
        "onHostMaintenance": "TERMINATE",
    },
}  # fmt: skip
ON_DEMAND = SPOT | {"scheduling": {"onHostMaintenance": "TERMINATE"}}


def _asked_for(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: object
) -> list[dict[str, Any]]:
    """Return what Google is asked for, when it answers what is a spot machine with ``error``."""
    pytest.importorskip("googleapiclient")
    from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

    from deploy.on_demand_gcp import SpotOrOnDemand

    asked: list[dict[str, Any]] = []

    def create(self: Any, config: dict[str, Any], tags: Any, count: int) -> dict[str, Any]:
        asked.append(config)
        if error is not None and "provisioningModel" in str(config):
            raise RuntimeError(error)
        return {"a": "node"}

    monkeypatch.setattr(GCPNodeProvider, "create_node", create)
    provider = object.__new__(SpotOrOnDemand)
    assert provider.create_node(config, {}, 1) == {"a": "node"}
    return asked


def test_a_spot_machine_is_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _asked_for(SPOT, monkeypatch, None) == [SPOT]


def test_where_there_is_none_the_same_one_comes_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _asked_for(SPOT, monkeypatch, CAPACITY) == [SPOT, ON_DEMAND]


def test_another_error_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="invalid image"):
        _asked_for(SPOT, monkeypatch, "invalid image")
