"""cluster.yaml against Ray's own schema and checks, offline."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def _validate(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    _validate(cluster)


@pytest.mark.parametrize("place", ["top", "node"])
def test_a_misspelt_key_is_refused(cluster: dict[str, Any], place: str) -> None:
    wrong = copy.deepcopy(cluster)
    target = wrong if place == "top" else wrong["available_node_types"]["gpu_worker"]
    target["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        _validate(wrong)


def test_the_head_trains_nothing_and_is_not_a_spot_instance(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]


def test_only_ssh_is_open_and_the_dashboard_stays_local(cluster: dict[str, Any]) -> None:
    rules = cluster["provider"]["security_group"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in rules] == [(22, 22)]
    start = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_AUTH_MODE=token" in start


def test_every_node_type_requires_session_tokens_for_its_metadata(cluster: dict[str, Any]) -> None:
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


def test_every_mounted_file_is_in_the_checkout(cluster: dict[str, Any]) -> None:
    local = [path for path in cluster["file_mounts"].values() if path.startswith("./")]
    assert local
    assert all((ROOT / path).is_file() for path in local)


def test_every_runtime_dependency_is_pinned_by_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    names = {
        dependency.split(">=")[0].split("[")[0].lower() for dependency in project["dependencies"]
    }
    assert names <= pinned
