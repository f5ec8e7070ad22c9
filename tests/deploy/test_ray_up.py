"""``ray up cluster.yaml`` against AWS as moto plays it, up to the head's last command."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import ROOT
from tests.helpers.aws import TOKEN, Aws, aws, nodes, ray_up, template
from tests.helpers.cluster_file import cluster_text


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with aws(tmp_path_factory.mktemp("aws")) as place:
        ray_up(place)
        yield place


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(cluster_text())


def test_the_head_is_what_the_file_says(up: Aws, cluster: dict[str, Any]) -> None:
    (head,) = up.instances()
    wanted = cluster["available_node_types"]["head"]["node_config"]
    for key in ("InstanceType", "ImageId"):
        assert head[key] == wanted[key]
    assert head["IamInstanceProfile"]["Arn"].endswith("/lasaft-head")
    assert [group["GroupName"] for group in head["SecurityGroups"]] == ["lasaft-ray"]
    assert head["Tags"]["ray-cluster-name"] == "lasaft"
    assert head["Tags"]["ray-node-status"] == "up-to-date"


def test_ssh_is_open_to_one_place_and_everything_to_the_nodes(up: Aws) -> None:
    groups = up.client("ec2").describe_security_groups()["SecurityGroups"]
    (group,) = [one for one in groups if one["GroupName"] == "lasaft-ray"]
    ssh, among = group["IpPermissions"]
    assert (ssh["FromPort"], ssh["ToPort"]) == (22, 22)
    assert [one["CidrIp"] for one in ssh["IpRanges"]] == ["203.0.113.7/32"]
    assert among["IpRanges"] == []
    assert [one["GroupId"] for one in among["UserIdGroupPairs"]] == [group["GroupId"]]


def test_the_head_has_the_token_for_itself(up: Aws) -> None:
    token = up.node / ".ray" / "auth_token"
    assert token.read_text() == TOKEN
    assert token.stat().st_mode & 0o777 == 0o600


def test_the_head_installs_the_dependencies_and_what_starts_workers(up: Aws) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = up.node / "lasaft-setup" / "requirements.txt"
    workflow = project["optional-dependencies"]["pipeline"]
    assert requirements.read_text().splitlines() == project["dependencies"] + workflow
    done = (up.node / "done.txt").read_text()
    constraints = up.node / "lasaft-setup" / "constraints.txt"
    assert constraints.read_text() == (ROOT / "constraints.txt").read_text()
    assert f"pip install --quiet -r {requirements} -c {constraints}\n" in done
    assert f"pip install --quiet boto3 -c {constraints}\n" in done
    assert re.search(r"^apt-get .* install -y ffmpeg python3-venv$", done, re.MULTILINE)


def test_the_head_starts_ray_with_the_settings_of_all_nodes(up: Aws) -> None:
    start = _start(up)
    assert start.startswith(
        "start --head --port=6379 --autoscaling-config=\\~/ray_bootstrap_config.yaml "
    )
    assert "RAY_AUTH_MODE=token\n" in start
    assert f"PYTHONPATH={up.node / 'lasaft-setup'}\n" in start
    assert (up.node / "lasaft-setup" / "deploy" / "on_demand_aws.py").is_file()
    types = json.loads((up.node / "ray_bootstrap_config.yaml").read_text())["available_node_types"]
    found = {name: one["resources"] for name, one in types.items()}
    gpus = {name: (int(has["CPU"]), has.get("GPU")) for name, has in found.items()}
    assert gpus == {"head": (0, None), "cpu": (16, None), "gpu": (16, 1), "four_gpus": (48, 4)}


def _start(place: Aws) -> str:
    """Return the command with which the head starts Ray, and its settings."""
    done = (place.node / "done.txt").read_text()
    *_, stop, start = re.split(r"^ray ", done, flags=re.MULTILINE)
    assert stop.startswith("stop\n")
    return start


def test_hosts_of_one_s_own_become_a_cluster(tmp_path: Path) -> None:
    place = nodes(tmp_path)
    ray_up(place, "hosts of your own")
    assert (place.node / ".ray" / "auth_token").read_text() == TOKEN
    start = _start(place)
    assert start.startswith("start --head --port=6379 --num-cpus=0 ")
    assert {"RAY_AUTH_MODE=token", "RAY_enable_autoscaler_v2=0"} <= set(start.splitlines())
    assert "pip install --quiet boto3" not in (place.node / "done.txt").read_text()


def test_no_file_on_the_head_but_the_token_holds_a_secret(up: Aws) -> None:
    holds = {path.name for path in up.node.rglob("*") if path.is_file() and _tells(path)}
    assert holds == {"auth_token"}


def _tells(path: Path) -> bool:
    data = path.read_bytes()
    return TOKEN.encode() in data or b"aws_secret_access_key" in data.lower()


def test_a_node_may_use_one_bucket_and_start_workers_as_the_head_alone() -> None:
    resources = template()
    bucket = resources["UseBucket"]["Properties"]["PolicyDocument"]["Statement"]
    arn = "arn:aws:s3:::my-bucket"
    assert [one["Resource"] for one in bucket] == [arn, f"{arn}/*"]
    assert "Policies" not in resources["WorkerRole"]["Properties"]
    (policy,) = resources["HeadRole"]["Properties"]["Policies"]
    every = [one for one in policy["PolicyDocument"]["Statement"] if one["Resource"] == "*"]
    assert {one["Action"] for one in every} == {"ec2:Describe*", "iam:CreateServiceLinkedRole"}
