"""cluster.yaml against Ray's own schema and checks, offline."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import parse
from tests.helpers import NEW_SHELL, ROOT
from tests.helpers.cluster_file import CLUSTER, cluster_text
from tests.helpers.hosts import NO_METRICS

_MODULE = "deploy.on_demand_{}.SpotOrOnDemand"
# By the first words of their blocks: what the provider is, and its keys.
_PLACE = {"type", "module", "region", "availability_zone", "cache_stopped_nodes"}
_AWS = (_MODULE.format("aws"), _PLACE | {"security_group"})
VARIANTS = {
    "": _AWS,
    "a shared folder": _AWS,
    "Google Cloud": (_MODULE.format("gcp"), _PLACE | {"project_id"}),
    "hosts of your own": (None, {"type", "head_ip", "worker_ips"}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    found = yaml.safe_load(cluster_text(request.param))
    module, keys = VARIANTS[request.param]
    assert found["provider"].get("module") == module
    assert found["provider"]["type"] == ("external" if module else "local")
    # Ray's schema lets a provider have any key.
    assert found["provider"].keys() == keys
    return found


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER.read_text())


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
    is_google = "project_id" in variant["provider"]
    assert all({"CPU", "memory"} <= has.keys() if is_google else not has for has in workers)


def test_the_head_trains_nothing_and_is_not_a_spot_instance(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]


def test_every_node_type_requires_session_tokens_for_its_metadata(cluster: dict[str, Any]) -> None:
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


def test_no_file_of_secrets_is_sent_to_a_node(cluster: dict[str, Any]) -> None:
    local = [path for path in cluster["file_mounts"].values() if path.startswith("./")]
    assert local
    assert all((ROOT / path).is_file() for path in local)  # a folder may hold an .env


def test_every_type_of_node_has_an_image_and_one_bucket_s_rights(variant: dict[str, Any]) -> None:
    types = variant["available_node_types"]
    for name, node in types.items():
        config = node["node_config"]
        if "project_id" in variant["provider"]:
            image = config["disks"][0]["initializeParams"]["sourceImage"]
            account = "serviceAccounts" in config
            assert account == (name != "head")  # Ray gives the head one of its own
        else:
            image = config["ImageId"]
            profile = "lasaft-head" if name == "head" else "lasaft-worker"
            assert config["IamInstanceProfile"] == {"Name": profile}
        has_gpus = name in ("gpu", "four_gpus")
        assert "24.04" in image or "2404" in image  # its Python is 3.12
        assert ("nvidia" in image) == has_gpus
        assert ("GPU" in node["resources"]) == has_gpus or not node["resources"]


@pytest.mark.parametrize(
    "key",
    [f"{kind}_commands" for kind in ("initialization", "setup", "head_setup", "worker_setup")]
    + [f"{kind}_start_ray_commands" for kind in ("head", "worker")],
)
def test_bash_takes_every_command(variant: dict[str, Any], key: str) -> None:
    for command in variant[key]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def _commands() -> list[str]:
    """Return the commands at the top of cluster.yaml, each on one line."""
    top = CLUSTER.read_text().split("\ncluster_name:")[0]
    lines: list[str] = re.findall(r"^#   (\S.*|    .*)$", top, re.MULTILINE)
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def test_the_first_command_makes_the_token(tmp_path: Path) -> None:
    first = _commands()[0]
    settings = NEW_SHELL | {"HOME": str(tmp_path)}
    settings["PATH"] = f"{Path(sys.executable).parent}:{settings['PATH']}"
    subprocess.run(["bash", "-c", first], env=settings, check=True)
    token = tmp_path / ".ray" / "auth_token"
    assert len(token.read_text()) >= 32
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "path", [CLUSTER, ROOT / "docs" / "cluster.md"], ids=lambda path: path.name
)
def test_all_is_made_in_the_region_of_the_nodes(path: Path, cluster: dict[str, Any]) -> None:
    # Elsewhere Ray finds no group lasaft-ray, and makes one with SSH open to everybody.
    before, _, after = path.read_text().partition("export AWS_DEFAULT_REGION=")
    assert after.split()[0] == cluster["provider"]["region"]
    assert "aws cloudformation" not in before
    assert "aws cloudformation deploy" in after


@pytest.mark.usefixtures("my_bucket")
def test_the_run_that_is_submitted_is_one_that_the_command_line_accepts() -> None:
    (submit,) = [line for line in _commands() if "ray job submit" in line]
    words = shlex.split(submit.partition(" -- ")[2])
    assert words[:3] == ["python", "-m", "jobs.run"]
    config = parse(words[3:], "run").config
    assert config.cluster.address == "auto"
    assert config.train.gpus == 1  # of the preset
    assert str(config.output_dir) == "s3://my-bucket/runs/film"


def test_nothing_names_a_folder_that_nobody_mounts() -> None:
    for block in VARIANTS:
        used = re.findall(r"(?<![\w$])/shared\b", cluster_text(block))
        assert bool(used) == (block == "a shared folder")


def test_every_runtime_dependency_is_pinned_by_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = project["dependencies"] + project["optional-dependencies"]["pipeline"]
    names = {dependency.split(">=")[0].split("[")[0].lower() for dependency in wanted}
    assert names <= pinned
