"""Google Cloud's provider, with answers of Google's; tests/deploy/test_ray_up.py has AWS's."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml

from tests.helpers.cluster_file import cluster_text

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


def test_ray_makes_of_the_file_what_google_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("googleapiclient")
    from ray.autoscaler._private.gcp import config as gcp
    from ray.autoscaler._private.util import prepare_config

    from deploy.on_demand_gcp import SpotOrOnDemand

    monkeypatch.setenv("HOME", str(tmp_path))  # for the key that Ray makes
    crm, iam, compute = MagicMock(), MagicMock(), MagicMock()
    project = {"projectId": "my-project", "lifecycleState": "ACTIVE"}
    crm.projects().get().execute.return_value = project
    crm.projects().getIamPolicy().execute.return_value = {"bindings": []}
    crm.projects().setIamPolicy().execute.return_value = {}
    head_account = "ray-autoscaler-sa-v1@my-project.iam.gserviceaccount.com"
    account = {"email": head_account, "projectId": "my-project"}
    iam.projects().serviceAccounts().get().execute.return_value = account
    metadata = {"name": "my-project", "commonInstanceMetadata": {"items": []}}
    compute.projects().get().execute.return_value = metadata
    compute.globalOperations().get().execute.return_value = {"status": "DONE"}
    compute.subnetworks().list().execute.return_value = {"items": [{"selfLink": "a subnet"}]}
    clients = (crm, iam, compute, None)
    monkeypatch.setattr(gcp, "construct_clients_from_provider_config", lambda _: clients)

    config = prepare_config(yaml.safe_load(cluster_text("Google Cloud")))
    made = SpotOrOnDemand.bootstrap_config(config)
    assert made["head_node"]["serviceAccounts"][0]["email"] == head_account
    types = made["available_node_types"]
    assert types.keys() == {"head", "cpu", "gpu", "four_gpus"}
    for name in types.keys() - {"head"}:
        node = types[name]["node_config"]
        (own,) = node["serviceAccounts"]
        assert own["email"] == "lasaft-worker@my-project.iam.gserviceaccount.com"
        assert node["networkInterfaces"][0]["subnetwork"] == "a subnet"
