"""A trained network in MLflow's model registry: safetensors, JSON and code, nothing pickled."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import tempfile
from collections.abc import Iterator, Set
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

import lasaft
from lasaft.card import card_of
from lasaft.checkpoint_record import read_record
from lasaft.files import read_json, read_steadily

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_FOLDER = "model"
_EXAMPLE_SAMPLES = 1000
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
    record = read_json(checkpoint / "config.json", {"hash"}, "train again: it is mended then")
    name = re.sub(r"""[/:'"%]""", "_", name)  # MLflow's addresses and filters give these a meaning
    _make_known(client, name)
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run}'")
    if any(version.tags.get("checkpoint_hash") == record["hash"] for version in versions):
        return
    with tempfile.TemporaryDirectory() as folder:
        model = _saved(checkpoint, record, Path(folder) / MODEL_FOLDER)
        for file in sorted(path for path in model.rglob("*") if path.is_file()):
            place = PurePosixPath(MODEL_FOLDER, file.parent.relative_to(model))
            content = hashlib.sha256(read_steadily(file)).hexdigest()
            arrival = f"{content[:16]} {place / file.name}"
            if arrival not in arrived:
                client.log_artifact(run, str(file), str(place))
                yield arrival
        # By this tag MLflow's page lists the model with its run.
        client.set_tag(run, "mlflow.log-model.history", json.dumps([_listed(model, run)]))
    source = f"{client.get_run(run).info.artifact_uri}/{MODEL_FOLDER}"
    client.create_model_version(name, source, run, tags=_facts(record))


def _listed(model: Path, run: str) -> dict[str, Any]:
    from mlflow.models import Model

    said = Model.load(str(model)).to_dict()
    parts = ("flavors", "model_uuid", "signature", "utc_time_created")
    return {"artifact_path": MODEL_FOLDER, "run_id": run} | {name: said[name] for name in parts}


def _make_known(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _saved(checkpoint: Path, record: dict[str, Any], target: Path) -> Path:
    """Write the model as ``mlflow.pyfunc.load_model`` takes it on any machine.

    The same checkpoint gives the same bytes in every call: MLflow's random id and clock are
    replaced by the hash of the checkpoint and the time at which it was written.
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    def wave(name: str | None = None) -> TensorSpec:
        return TensorSpec(np.dtype("float32"), (-1, -1), name)  # [audio channel, sample]

    written = datetime.fromtimestamp((checkpoint / "config.json").stat().st_mtime, UTC)
    _, config = read_record(checkpoint)
    stems = Schema([wave(name) for name in config.sources])
    signature, made = ModelSignature(Schema([wave()]), stems), written.replace(tzinfo=None)
    channels = config.audio_channels
    identity = record["hash"][:32]
    mlflow.pyfunc.save_model(
        target,
        loader_module="lasaft.pyfunc",
        data_path=str(checkpoint),
        code_paths=[str(Path(lasaft.__file__).parent)],
        mlflow_model=Model(model_uuid=identity, utc_time_created=made),
        signature=signature,
        input_example=np.zeros((channels, _EXAMPLE_SAMPLES), np.float32),
        metadata=_facts(record),
        pip_requirements=[f"{package}=={_version(package)}" for package in _PACKAGES],
    )
    return target


def _version(package: str) -> str:
    """Return the installed version without a build's suffix such as ``+cpu``."""
    return importlib.metadata.version(package).partition("+")[0]


def _facts(record: dict[str, Any]) -> dict[str, str]:
    """Return what a person wants to know of a model at a glance."""
    provenance = record["provenance"]
    facts = {"checkpoint_hash": record["hash"], "network": json.dumps(record["model"])}
    for key in ("data_hash", "git_commit", "epoch", "step"):
        facts[key] = str(provenance.get(key))
    facts |= {f"card.{name}": text for name, text in card_of(provenance, record["hash"]).items()}
    losses = provenance.get("metrics") or {}
    return facts | {"valid_loss": str(losses.get("valid/loss"))}
