"""The MLflow run of a folder: found again, or created in its experiment."""

from __future__ import annotations

import hashlib
import json
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lasaft.card import data_name
from lasaft.config import variant_name
from lasaft.files import atomic_write_json, read_json, read_steadily
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.tracking.address import own_store, tracking_address

if TYPE_CHECKING:
    from mlflow import MlflowClient


def run_file(folder: RunFolder) -> Path:
    """Return where the ids of a folder's MLflow run and of its experiment are kept."""
    return folder.tracking / "run.json"


def find_or_create(
    client: MlflowClient, config: RunConfig, folder: RunFolder, parent: RunFolder | None
) -> dict[str, Any]:
    """Return the ids of the folder's run and experiment, and when the run began in milliseconds.

    Args:
        client: connected to the tracking server.
        config: of the run.
        folder: its folder.
        parent: folder of the run that this one is a part of, which MLflow has already.
    """
    folder_id = _folder_id(folder)
    tags = {"lasaft.folder": folder_id, "lasaft.model": variant_name(config.model)}
    if parent is None:
        experiment = _experiment(client, config, folder)
    else:
        record = read_json(run_file(parent), {"experiment_id", "run_id"}, "remove it")
        experiment, tags["mlflow.parentRunId"] = record["experiment_id"], record["run_id"]
    found = client.search_runs([experiment], f"tags.`lasaft.folder` = '{folder_id}'")
    data = data_name(config.data.model_dump(mode="json")) or "no data"
    usual = f"{variant_name(config.model)} on {data}, {time.strftime('%Y-%m-%d %H:%M')}"
    name = config.tracking.run_id or usual
    tags |= _source()
    run = found[0] if found else client.create_run(experiment, tags=tags, run_name=name)
    ids = {"run_id": run.info.run_id, "experiment_id": experiment}
    return ids | {"milliseconds": run.info.start_time}


def find_or_create_child(
    client: MlflowClient, parent: dict[str, Any], folder: RunFolder, name: str
) -> str:
    """Return the id of the run called ``name`` that is nested under the run of ``folder``.

    Args:
        client: connected to the tracking server.
        parent: what :func:`find_or_create` has returned of the folder's run.
        folder: its folder.
        name: unlike that of every other nested run.
    """
    place = f"{_folder_id(folder)}/{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    tags = {"lasaft.folder": place, "mlflow.parentRunId": parent["run_id"], **_source()}
    found = client.search_runs([parent["experiment_id"]], f"tags.`lasaft.folder` = '{place}'")
    if not found:
        return client.create_run(parent["experiment_id"], tags=tags, run_name=name).info.run_id
    client.set_tag(found[0].info.run_id, "mlflow.parentRunId", parent["run_id"])
    return found[0].info.run_id


def _source() -> dict[str, str]:
    """Return what MLflow's page shows as a run's source, beside the commit in which it was."""
    return {"mlflow.source.name": f"jobs/{Path(sys.argv[0]).name}", "mlflow.source.type": "LOCAL"}


def _folder_id(folder: RunFolder) -> str:
    """Return a name for this folder that no other has; it outlives a kill at any moment."""
    file = folder.tracking / "id"
    try:
        return str(json.loads(read_steadily(file)))
    except (FileNotFoundError, ValueError, RecursionError):
        name = uuid.uuid4().hex
        atomic_write_json(file, name)
        return name


def _experiment(client: MlflowClient, config: RunConfig, folder: RunFolder) -> str:
    """Return the id of the run's experiment, which is created where there is none."""
    name, place = config.tracking.experiment_name, None
    found = client.get_experiment_by_name(name)
    if tracking_address(config) == own_store(folder):
        place = folder.artifacts.as_uri()
        if found is not None and found.artifact_location != place:
            # The folder was moved or copied. MLflow never changes where an experiment's files go.
            name = f"{name} in {folder.root}"
            found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    return client.create_experiment(name, artifact_location=place)
