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

from lasaft import __version__
from tests.helpers import ROOT
from tests.helpers.crd import faults
from tests.helpers.hosts import NO_METRICS
from tests.helpers.pod_security import forbidden

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
    security_context: dict[str, Any]
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
    submitter_pod_template: dict[str, Any]
    ray_cluster_spec: _Cluster


class _RayJob(_Closed):
    """The fields of KubeRay's RayJob (ray.io/v1) that ours uses, and no others."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, Any]
    spec: _JobSpec


MLFLOW = "mlflow/kubernetes.yaml"
MANIFESTS = [("rayjob.yaml", variant) for variant in ("", "volume", "kueue", "metrics")]
MANIFESTS += [(MLFLOW, "")]


def _resources(name: str, variant: str = "") -> list[dict[str, Any]]:
    """Return what a file under deploy/ makes, in one of the variants of its comments."""
    text = (DEPLOY / name).read_text()
    if variant:
        (script,) = re.findall(r"^#   sed -E '(.+?)'", text, re.MULTILINE)
        script = script.replace("kueue", variant)
        command = ["sed", "-E", script, DEPLOY / name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


def _kind(name: str, kind: str, variant: str = "") -> dict[str, Any]:
    (found,) = [one for one in _resources(name, variant) if one["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return _kind("rayjob.yaml", "RayJob")


def _pods(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every pod that KubeRay makes of a RayJob, as it makes them."""
    cluster = job["spec"]["rayClusterSpec"]
    yield _pod(job["spec"]["submitterPodTemplate"])
    for group in _groups(job):
        pod = _pod(group["template"])
        ray = pod["spec"]["containers"][0]
        if group is cluster["headGroupSpec"]:
            options = cluster["autoscalerOptions"]
            scaler = {key: options[key] for key in ("env", "securityContext") if key in options}
            own = {"name": "autoscaler", "image": ray["image"], **scaler}
            pod["spec"]["containers"].append(own)
        else:  # waits for the head, with what the container of Ray may do
            own = {key: ray[key] for key in ("image", "securityContext") if key in ray}
            pod["spec"]["initContainers"] = [{"name": "wait-gcs-ready", **own}]
        yield pod


def _groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def _nodes(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pods that are nodes of Ray."""
    return list(_pods(job))[1:]


def _pod(template: dict[str, Any]) -> dict[str, Any]:
    spec = copy.deepcopy(template)
    metadata = {"name": "pod", **spec.pop("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, **spec}


def _check_pods(job: dict[str, Any]) -> None:
    import kubernetes_validate

    for pod in _pods(job):
        kubernetes_validate.validate(pod, NEWEST_KUBERNETES, strict=True)


@pytest.mark.parametrize(("name", "variant"), MANIFESTS)
def test_kubernetes_accepts_every_manifest(name: str, variant: str) -> None:
    import kubernetes_validate

    for resource in _resources(name, variant):
        if resource["kind"] == "RayJob":
            _RayJob.model_validate(resource)
            _check_pods(resource)
        elif resource["kind"] != "PodMonitor":  # of Prometheus' operator
            kubernetes_validate.validate(resource, NEWEST_KUBERNETES, strict=True)


@pytest.mark.parametrize(("name", "variant"), MANIFESTS)
def test_every_pod_keeps_the_standard_restricted(name: str, variant: str) -> None:
    pods = []
    for resource in _resources(name, variant):
        if resource["kind"] == "RayJob":
            pods += _pods(resource)
        elif resource["kind"] in ("Deployment", "StatefulSet"):
            pods.append(_pod(resource["spec"]["template"]))
    assert pods
    assert [forbidden(pod["spec"]) for pod in pods] == [[]] * len(pods)


_SAFE = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_PROFILE = {"seccompProfile": {"type": "RuntimeDefault"}}


@pytest.mark.parametrize(
    ("pod", "container", "wrong"),
    [
        ({"runAsNonRoot": True, **_PROFILE}, _SAFE, []),
        ({}, {"runAsNonRoot": True, **_PROFILE, **_SAFE}, []),
        (_PROFILE, _SAFE, ["a: runAsNonRoot"]),
        ({"runAsNonRoot": True}, _SAFE, ["a: seccompProfile"]),
        ({"runAsNonRoot": True, "runAsUser": 0, **_PROFILE}, _SAFE, ["pod: runAsUser"]),
        (
            {"runAsNonRoot": True, **_PROFILE},
            {},
            ["a: allowPrivilegeEscalation", "a: capabilities.drop"],
        ),
        (
            {"runAsNonRoot": True, **_PROFILE},
            {**_SAFE, "privileged": True, "capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}},
            ["a: privileged", "a: capabilities.add"],
        ),
    ],
)
def test_what_the_standard_forbids_is_found(
    pod: dict[str, Any], container: dict[str, Any], wrong: list[str]
) -> None:
    spec = {"securityContext": pod, "containers": [{"name": "a", "securityContext": container}]}
    assert forbidden(spec) == wrong
    assert forbidden({**spec, "hostNetwork": True}) == ["hostNetwork", *wrong]
    assert forbidden({**spec, "volumes": [{"name": "v", "hostPath": {}}]}) == ["volumes.v", *wrong]


def test_an_eviction_waits_for_the_head_and_policies_mean_pods_that_there_are(
    job: dict[str, Any],
) -> None:
    labels = [pod["metadata"]["labels"] for pod in _pods(job)]
    assert labels == [{"app": "lasaft"}] * len(labels)
    budget = _kind("rayjob.yaml", "PodDisruptionBudget")["spec"]
    # KubeRay labels each pod with its part; of pods with no scale, only a number may be demanded.
    assert budget["selector"]["matchLabels"] == {"app": "lasaft", "ray.io/node-type": "head"}
    assert budget["minAvailable"] == 1
    policy = _kind("rayjob.yaml", "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == {"app": "lasaft"}


def test_a_queue_starts_all_nodes_or_none() -> None:
    job = _kind("rayjob.yaml", "RayJob", "kueue")
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "lasaft"}
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


def test_prometheus_finds_the_ports_that_are_open(job: dict[str, Any]) -> None:
    assert not {"metrics", "as-metrics", "dash-metrics"} & set(_ports(job))
    job = _kind("rayjob.yaml", "RayJob", "metrics")
    monitor = _kind("rayjob.yaml", "PodMonitor", "metrics")["spec"]
    assert {one["port"] for one in monitor["podMetricsEndpoints"]} <= _ports(job).keys()
    for pod in _nodes(job):
        shown = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
        assert shown["RAY_enable_metrics_collection"] == "1"
        assert int(shown["AUTOSCALER_METRIC_PORT"]) == _ports(job)["as-metrics"]
        assert int(shown["DASHBOARD_METRIC_PORT"]) == _ports(job)["dash-metrics"]
    policy = _kind("rayjob.yaml", "NetworkPolicy", "metrics")["spec"]["ingress"]
    open_ports = {port["port"] for rule in policy for port in rule.get("ports", [])}
    assert open_ports == {8265, 8080, 44217, 44227}


def _ports(job: dict[str, Any]) -> dict[str, int]:
    containers = [pod["spec"]["containers"][0] for pod in _nodes(job)]
    ports = [port for container in containers for port in container.get("ports", [])]
    return {port["name"]: port["containerPort"] for port in ports}


def test_only_the_variant_with_a_volume_mounts_one(job: dict[str, Any]) -> None:
    assert "/shared" not in str(job)
    job = _kind("rayjob.yaml", "RayJob", "volume")
    for pod in _nodes(job):
        (claim,) = [one for one in pod["spec"]["volumes"] if "persistentVolumeClaim" in one]
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        assert [one["mountPath"] for one in mounts if one["name"] == claim["name"]] == ["/shared"]


def test_images_have_the_tag_of_this_version() -> None:
    for name in ("rayjob.yaml", MLFLOW, "Dockerfile", "mlflow/Dockerfile"):
        tags = re.findall(r"registry\.example\.com/[\w-]+:([\w.-]+)", (DEPLOY / name).read_text())
        assert tags
        assert {tag.removesuffix("-cpu").removesuffix("-gpu") for tag in tags} == {__version__}


def test_the_image_of_a_node_fits_what_it_has(job: dict[str, Any]) -> None:
    for pod in _nodes(job):
        container = pod["spec"]["containers"][0]
        has_gpus = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-gpu" if has_gpus else "-cpu")


def test_the_run_finds_the_tracking_server_by_its_service(job: dict[str, Any]) -> None:
    address = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["MLFLOW_TRACKING_URI"]
    services = {
        one["metadata"]["name"]: one for one in _resources(MLFLOW) if one["kind"] == "Service"
    }
    host, _, port = address.removeprefix("http://").partition(":")
    assert int(port) in [one["port"] for one in services[host]["spec"]["ports"]]
    container = _kind(MLFLOW, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert f"{host}:{port}" in env["MLFLOW_ALLOWED_HOSTS"].split(",")
    assert env["POSTGRES_HOST"] in services
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] == "/health"
    keys = {one["valueFrom"]["secretKeyRef"]["key"] for one in _secrets(job)}
    made = re.findall(r"--from-literal=(\w+)=", (DEPLOY / MLFLOW).read_text())
    assert keys < set(made)


def _secrets(job: dict[str, Any]) -> list[dict[str, Any]]:
    containers = [pod["spec"]["containers"][0] for pod in _nodes(job)]
    return [one for each in containers for one in each["env"] if "valueFrom" in one]


def test_start_sh_gets_what_it_needs() -> None:
    needed = set(re.findall(r'"\$\{(\w+):\?\}"', (DEPLOY / "mlflow" / "start.sh").read_text()))
    assert len(needed) >= 5
    container = _kind(MLFLOW, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert needed <= {one["name"] for one in container["env"]}
    compose = yaml.safe_load((DEPLOY / "mlflow" / "compose.yaml").read_text())
    assert needed <= compose["services"]["mlflow"]["environment"].keys()


def test_a_misspelt_field_of_the_ray_job_is_refused(job: dict[str, Any]) -> None:
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(ValidationError, match="maxReplica"):
        _RayJob.model_validate(wrong)


@pytest.mark.parametrize("variant", ["", "volume", "kueue", "metrics"])
def test_kuberay_s_own_definition_accepts_the_ray_job(variant: str) -> None:
    if KUBERAY is None:
        pytest.skip("LASAFT_KUBERAY_CRD names no ray.io_rayjobs.yaml of a release of KubeRay")
    assert faults(Path(KUBERAY).read_text(), _kind("rayjob.yaml", "RayJob", variant)) == []


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


@pytest.mark.usefixtures("my_bucket")
def test_the_job_runs_what_the_command_line_accepts(job: dict[str, Any]) -> None:
    from jobs.cli import parse

    words = job["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "jobs.run"]
    config = parse(words[3:], "run").config
    assert config.cluster.address == "auto"
    assert config.train.gpus == 1  # of the preset
    assert str(config.output_dir) == "s3://my-bucket/runs/film"


def test_the_head_of_the_ray_job_trains_nothing(job: dict[str, Any]) -> None:
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"


def test_secrets_come_from_kubernetes(job: dict[str, Any]) -> None:
    for pod in _nodes(job):
        container = pod["spec"]["containers"][0]
        secret = [one for one in container["env"] if re.search("USERNAME|PASSWORD", one["name"])]
        assert secret
        assert all("secretKeyRef" in one["valueFrom"] for one in secret)


def test_no_container_of_the_ray_job_shows_its_metrics(job: dict[str, Any]) -> None:
    scaler = job["spec"]["rayClusterSpec"]["autoscalerOptions"]["env"]
    assert {one["name"]: one["value"] for one in scaler}.items() <= NO_METRICS.items()
    assert scaler
    for pod in _nodes(job):
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


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_image_gets_what_its_dockerfile_copies_and_no_more(path: Path) -> None:
    kept = path.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in kept
    names = {line[1:].removesuffix("/**") for line in kept if line.startswith("!")}
    assert all((ROOT / name).exists() for name in names)
    copied = re.findall(r"^COPY (?:--\S+ )?(.+) \S+$", path.read_text(), re.MULTILINE)
    files = {file for words in copied for file in words.split()} - {"."}
    assert all(any(file.startswith(name) for name in names) for file in files)


def test_the_image_s_extras_are_extras() -> None:
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


def test_every_version_of_the_server_is_pinned() -> None:
    text = (DEPLOY / "mlflow" / "Dockerfile").read_text()
    (words,) = re.findall(r"pip install (.+) \\\n", text)
    assert "-c /tmp/constraints.txt" in words
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    named = re.findall(r"[\w-]+", words.partition("constraints.txt")[2].replace("[auth]", ""))
    assert named == ["mlflow", "boto3", "psycopg2-binary"]
    assert set(named) <= set(pinned)
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-", text, re.MULTILINE)
    for name in ("mlflow/compose.yaml", MLFLOW):
        images = re.findall(r"image: (\S+)", (DEPLOY / name).read_text())
        assert all(re.search(r":\d+\.\d+", image) for image in images)
        assert "postgres:17.6" in images


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
