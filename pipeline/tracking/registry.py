"""A trained network in MLflow's model registry: safetensors, JSON and code, nothing pickled."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

import lasaft

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_FOLDER = "model"
_PACKAGES = (
    "torch", "numpy", "scipy", "safetensors", "pydantic", "soundfile", "soxr", "jaxtyping", "tqdm",
)  # fmt: skip


def register(
    client: MlflowClient, run: str, checkpoint: Path, name: str, arrived: Set[str] = frozenset()
) -> Iterator[str]:
    """Put ``checkpoint`` among the artifacts of ``run`` as a model, and into the registry.

    A checkpoint that the registry has from this run already is left alone.

    Yields:
        the name of each file, with its hash, once the server has it; the registry follows after
        the last one.

    Args:
        client: connected to the tracking server.
        run: id of the run that trained it.
        checkpoint: folder with weights.safetensors and config.json.
        name: of the registered model; each checkpoint is a version of it.
        arrived: names that an earlier call has yielded: these files are not sent again.
    """
    record = json.loads((checkpoint / "config.json").read_bytes())
    name = re.sub(r"""[/:'"%]""", "_", name)  # MLflow's addresses and filters give these a meaning
    _make_known(client, name)
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run}'")
    if any(version.tags.get("checkpoint_hash") == record["hash"] for version in versions):
        return
    with tempfile.TemporaryDirectory() as folder:
        model = _packed(checkpoint, record, Path(folder))
        for file in sorted(path for path in model.rglob("*") if path.is_file()):
            place = PurePosixPath(MODEL_FOLDER, file.parent.relative_to(model))
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            arrival = f"{content[:16]} {place / file.name}"
            if arrival not in arrived:
                client.log_artifact(run, str(file), str(place))
                yield arrival
    source = f"{client.get_run(run).info.artifact_uri}/{MODEL_FOLDER}"
    client.create_model_version(name, source, run, tags=_facts(record))


def _make_known(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _packed(checkpoint: Path, record: dict[str, Any], target: Path) -> Path:
    """Write the model's form on disk; ``mlflow.pyfunc.load_model`` takes it on any machine.

    Written by hand: importing mlflow.pyfunc takes seconds and warns about its own code.
    """
    source = Path(lasaft.__file__).parent
    shutil.copytree(checkpoint, target / "checkpoint")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, target / "code" / source.name, ignore=ignored)
    requirements = [f"{package}=={_version(package)}" for package in _PACKAGES]
    (target / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    _write(target / "python_env.yaml", environment)
    wave = {"dtype": "float32", "shape": [-1, -1]}
    stems = [
        {"type": "tensor", "name": name, "tensor-spec": wave} for name in record["model"]["sources"]
    ]
    loader = {
        "loader_module": "lasaft.pyfunc", "data": "checkpoint", "code": "code",
        "env": {"virtualenv": "python_env.yaml"}, "python_version": platform.python_version(),
    }  # fmt: skip
    description = {
        "flavors": {"python_function": loader},
        "metadata": _facts(record),
        "mlflow_version": _version("mlflow"),
        "signature": {
            "inputs": json.dumps([{"type": "tensor", "tensor-spec": wave}]),
            "outputs": json.dumps(stems),
        },
    }
    _write(target / "MLmodel", description)
    return target


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=True), encoding="utf-8")


def _version(package: str) -> str:
    """Return the installed version without a build's suffix such as ``+cpu``."""
    return importlib.metadata.version(package).partition("+")[0]


def _facts(record: dict[str, Any]) -> dict[str, str]:
    """Return what a person wants to know of a model at a glance."""
    provenance = record["provenance"]
    facts = {"checkpoint_hash": record["hash"], "network": json.dumps(record["model"])}
    for key in ("data_hash", "git_commit", "epoch", "step"):
        facts[key] = str(provenance.get(key))
    losses = provenance.get("metrics") or {}
    return facts | {"valid_loss": str(losses.get("valid/loss"))}
