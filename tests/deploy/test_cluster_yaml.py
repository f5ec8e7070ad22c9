"""cluster.yaml against Ray's own schema and checks, offline."""

from __future__ import annotations

import copy
import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.helpers import ROOT
from tests.helpers.hosts import NO_METRICS

VARIANTS = {"aws": None, "gcp": "Google Cloud", "local": "hosts of your own"}
_PLACE = {"type", "region", "availability_zone", "cache_stopped_nodes"}
PROVIDER_KEYS = {
    "aws": _PLACE | {"security_group"},
    "gcp": _PLACE | {"project_id"},
    "local": {"type", "head_ip", "worker_ips"},
}


def _text(block: str | None) -> str:
    """Return cluster.yaml as it is after the comment signs of one block were taken away."""
    text, *blocks = re.split(r"^# ---- ", (ROOT / "cluster.yaml").read_text(), flags=re.MULTILINE)
    if block is None:
        return text
    (chosen,) = (each for each in blocks if each.startswith(block))
    return text + re.sub(r"^# ?", "", chosen.partition("\n")[2], flags=re.MULTILINE)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    found = yaml.safe_load(_text(VARIANTS[request.param]))
    assert found["provider"]["type"] == request.param
    return found


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def _validate(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_the_cluster_file(variant: dict[str, Any]) -> None:
    _validate(variant)


def test_a_misspelt_key_is_refused(variant: dict[str, Any]) -> None:
    wrong = copy.deepcopy(variant)
    wrong["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        _validate(wrong)
    wrong = copy.deepcopy(variant)
    for node in wrong["available_node_types"].values():
        node["max_worker"] = 3
        with pytest.raises(Exception, match="max_worker"):
            _validate(wrong)


def test_every_key_of_the_provider_is_one_that_ray_reads(variant: dict[str, Any]) -> None:
    # Ray's schema lets a provider have any key.
    assert variant["provider"].keys() == PROVIDER_KEYS[variant["provider"]["type"]]


def test_no_variant_trains_on_its_head_or_shows_its_dashboard(variant: dict[str, Any]) -> None:
    start = " ".join(variant["head_start_ray_commands"])
    head = variant["available_node_types"].get("head")
    assert "--num-cpus=0" in start if head is None else head["resources"]["CPU"] == 0
    assert "--dashboard-host=127.0.0.1" in start
    commands = (start, " ".join(variant["worker_start_ray_commands"]))
    assert all("RAY_AUTH_MODE=token" in command for command in commands)
    settings = [f"{name}={value}" for name, value in NO_METRICS.items()]
    assert all(setting in start for setting in settings)
    assert settings[0] in commands[1]  # the others are the head's
    assert all("--disable-usage-stats" in command for command in commands)
    assert "chmod 600 ~/.ray/auth_token" in variant["setup_commands"]


def test_workers_of_the_clouds_are_spot_instances(variant: dict[str, Any]) -> None:
    types = variant["available_node_types"]
    spot = {name for name, node in types.items() if "spot" in str(node["node_config"]).lower()}
    assert spot == types.keys() - {"head"}


def test_an_autoscaler_knows_what_workers_have_before_there_is_one(variant: dict[str, Any]) -> None:
    types = variant["available_node_types"]
    workers = [types[name]["resources"] for name in types.keys() - {"head"}]
    # Of AWS Ray asks what an instance type has; of Google Cloud it does not.
    says = {"gcp": {"CPU", "GPU", "memory"}}.get(variant["provider"]["type"], set())
    assert all(resources.keys() == says for resources in workers)


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
