"""The files under deploy/ against the schemas and linters of what reads them, offline."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tests.helpers import ROOT
from tests.helpers.crd import faults
from tests.helpers.hosts import NO_METRICS

DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.rglob("Dockerfile"))
NEWEST_KUBERNETES = "1.37"
KUBERAY = os.environ.get("LASAFT_KUBERAY_CRD")


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class _WorkerGroup(_Closed):
    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    ray_start_params: dict[str, str]
    template: dict[str, Any]
    num_of_hosts: int = 1
    scale_strategy: dict[str, Any] | None = None
    suspend: bool = False


class _HeadGroup(_Closed):
    ray_start_params: dict[str, str]
    template: dict[str, Any]
    service_type: str | None = None
    head_service: dict[str, Any] | None = None
    enable_ingress: bool = False


class _Autoscaler(_Closed):
    idle_timeout_seconds: int
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"]
    env: list[dict[str, str]] = []


class _Authentication(_Closed):
    mode: Literal["token", "disabled"]


class _Cluster(_Closed):
    ray_version: str
    auth_options: _Authentication
    enable_in_tree_autoscaling: bool
    autoscaler_options: _Autoscaler
    head_group_spec: _HeadGroup
    worker_group_specs: list[_WorkerGroup]


class _JobSpec(_Closed):
    entrypoint: str
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode"]
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int
    backoff_limit: int
    runtime_env: str = Field(alias="runtimeEnvYAML")
    ray_cluster_spec: _Cluster


class _RayJob(_Closed):
    """The fields of KubeRay's RayJob (ray.io/v1) that ours uses, and no others."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, Any]
    spec: _JobSpec


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())


def _pods(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        metadata = {"name": "pod", **group["template"].get("metadata", {})}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, **_spec(group)}


def _spec(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group["template"].items() if key != "metadata"}


def _check_pods(job: dict[str, Any]) -> None:
    import kubernetes_validate

    for pod in _pods(job):
        kubernetes_validate.validate(pod, NEWEST_KUBERNETES, strict=True)


def test_the_ray_job_has_known_fields_and_kubernetes_accepts_its_pods(job: dict[str, Any]) -> None:
    _RayJob.model_validate(job)
    _check_pods(job)


def test_a_misspelt_field_of_the_ray_job_is_refused(job: dict[str, Any]) -> None:
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(ValidationError, match="maxReplica"):
        _RayJob.model_validate(wrong)


def test_kuberay_s_own_definition_accepts_the_ray_job(job: dict[str, Any]) -> None:
    if KUBERAY is None:
        pytest.skip("LASAFT_KUBERAY_CRD names no ray.io_rayjobs.yaml of a release of KubeRay")
    assert faults(Path(KUBERAY).read_text(), job) == []


_DEFINITION = """
spec:
  group: ray.io
  names: {kind: RayJob}
  versions:
  - name: v1
    schema:
      openAPIV3Schema:
        type: object
        properties:
          apiVersion: {type: string}
          kind: {type: string}
          metadata: {type: object}
          spec:
            type: object
            required: [entrypoint]
            properties:
              entrypoint: {type: string}
              limit: {anyOf: [{type: integer}, {type: string}], x-kubernetes-int-or-string: true}
              labels: {type: object, additionalProperties: {type: string}}
"""


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ({"entrypoint": "x", "limit": "2", "labels": {"any": "name"}}, None),
        ({"entrypoint": "x", "entrypiont": "y"}, "entrypiont"),
        ({"entrypoint": 5}, "entrypoint"),
        ({"entrypoint": "x", "labels": {"any": 1}}, "labels.any"),
        ({}, "entrypoint"),
    ],
)
def test_a_definition_finds_unknown_missing_and_wrong_fields(
    spec: dict[str, Any], wrong: str | None
) -> None:
    found = faults(
        _DEFINITION, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {}, "spec": spec}
    )
    assert found == [] if wrong is None else len(found) == 1 and wrong in found[0]


def test_a_definition_is_of_its_own_kind_and_version() -> None:
    for version, kind in (("ray.io/v2", "RayJob"), ("ray.io/v1", "RayCluster")):
        assert faults(_DEFINITION, {"apiVersion": version, "kind": kind, "spec": {}}) != []


def test_a_misspelt_field_of_a_pod_is_refused(job: dict[str, Any]) -> None:
    import kubernetes_validate

    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volume"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volume"):
        _check_pods(wrong)


def test_the_job_runs_what_the_command_line_accepts(job: dict[str, Any], tmp_path: Path) -> None:
    from jobs.cli import parse

    words = job["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "jobs.run"]
    options = [str(tmp_path) if word.startswith("/shared/musdb18") else word for word in words[3:]]
    config = parse(options, "run").config
    assert config.cluster.address == "auto"
    mounts = [mount["mountPath"] for pod in _pods(job) for mount in _mounts(pod)]
    assert str(config.output_dir).startswith("/shared/")
    assert mounts.count("/shared") == 2


def _mounts(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return pod["spec"]["containers"][0]["volumeMounts"]


def test_the_head_of_the_ray_job_trains_nothing(job: dict[str, Any]) -> None:
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"


def test_pods_run_without_root_and_secrets_come_from_kubernetes(job: dict[str, Any]) -> None:
    for pod in _pods(job):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        container = pod["spec"]["containers"][0]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        secret = [one for one in container["env"] if re.search("USERNAME|PASSWORD", one["name"])]
        assert secret
        assert all("secretKeyRef" in one["valueFrom"] for one in secret)


def test_no_container_of_the_ray_job_shows_its_metrics(job: dict[str, Any]) -> None:
    scaler = job["spec"]["rayClusterSpec"]["autoscalerOptions"]["env"]
    assert {one["name"]: one["value"] for one in scaler}.items() <= NO_METRICS.items()
    assert scaler
    for pod in _pods(job):
        shown = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
        assert shown.items() >= NO_METRICS.items()


def test_one_version_of_ray_everywhere(job: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert f"ARG RAY={pinned[1]}\n" in (DEPLOY / "Dockerfile").read_text()


def _hadolint(text: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "hadolint"
    return subprocess.run(
        [program, "--no-color", "-"], input=text, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_linter_has_nothing_to_say_about_a_dockerfile(path: Path) -> None:
    done = _hadolint(path.read_text())
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_refuses_a_wrong_dockerfile() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert _hadolint(text.replace("WORKDIR /home", "WORKDIR home")).returncode == 1


def test_an_image_gets_what_its_dockerfile_copies_and_no_more() -> None:
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in kept
    folders = {line[1:].split("/")[0] for line in kept if line.startswith("!")}
    assert all((ROOT / name).exists() for name in folders)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (wanted,) = re.findall(r"-e '\.\[(.+)\]'", (DEPLOY / "Dockerfile").read_text())
    assert set(wanted.split(",")) <= set(extras)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "mlflow" / "compose.yaml").read_text())


def test_the_mlflow_server_listens_on_this_host_alone(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_secret_of_the_server_comes_from_the_environment(compose: dict[str, Any]) -> None:
    names = re.findall(r"^(\w+)=", (DEPLOY / "mlflow" / "env.example").read_text(), re.MULTILINE)
    for service in compose["services"].values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY", name):
                assert re.fullmatch(r"\$\{(\w+)(:\?fill in \.env|:-)\}", value), name
                assert name in names


def test_the_server_is_the_version_that_the_pipeline_uses() -> None:
    pinned = re.search(r"^mlflow==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"'mlflow[auth]=={pinned[1]}'" in (DEPLOY / "mlflow" / "Dockerfile").read_text()


class _Metadata(BaseHTTPRequestHandler):
    """The metadata server of a spot instance that is taken back at the third question."""

    cloud, asked = "aws", 0

    def _say(self, text: str, known: bool = True) -> None:
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        self._say("a token", known=self.cloud == "aws")

    def do_GET(self) -> None:
        type(self).asked += 1
        taken = self.asked >= 3
        if self.cloud == "aws":
            allowed = self.headers["X-aws-ec2-metadata-token"] == "a token"
            self._say("{}", known=allowed and taken and "instance-action" in self.path)
        else:
            self._say("TRUE" if taken else "FALSE", known=self.path.endswith("/preempted"))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("cloud", ["aws", "google"])
def test_the_notice_of_a_spot_instance_reaches_ray(cloud: str, tmp_path: Path) -> None:
    handler = type("Metadata", (_Metadata,), {"cloud": cloud})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/said\n')
    ray.chmod(0o755)
    raylet = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "--node_id=0123abc"]
    )
    finder = tmp_path / "pgrep"
    finder.write_text(f"#!/bin/sh\necho {raylet.pid}\n")
    finder.chmod(0o755)
    settings = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path),
        "METADATA": f"http://127.0.0.1:{server.server_port}", "EVERY_SECONDS": "0.01",
    }  # fmt: skip
    try:
        subprocess.run(
            ["bash", DEPLOY / "spot_notice.sh", "head:6379"],
            env=os.environ | settings, check=True, timeout=60,
        )  # fmt: skip
    finally:
        raylet.kill()
        raylet.wait()
        server.shutdown()
        server.server_close()
    assert handler.asked == 3
    said = (tmp_path / "said").read_text()
    assert said.startswith(
        "drain-node --address head:6379 --node-id 0123abc --reason DRAIN_NODE_REASON_PREEMPTION "
    )
