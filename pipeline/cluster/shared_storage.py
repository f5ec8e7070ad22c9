"""Whether every node of the cluster sees, and can write, the folders that a run shares."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lasaft.errors import StageError
from pipeline.cluster.connection import connected, living_nodes
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder

# Some network file systems show a new file only after a while.
_PATIENCE_SECONDS = 5.0
# A node that is busy starting takes some seconds; one whose file system hangs never answers.
_ANSWER_SECONDS = 60.0


@contextmanager
def ready_cluster(config: RunConfig) -> Iterator[None]:
    """Be connected to Ray inside the ``with``, and sure that its nodes share their folders.

    Raises:
        ConfigError: no cluster answers.
        StageError: some nodes do not see or cannot write a folder of the run.
    """
    with connected(config.cluster):
        require_shared_storage(config)
        yield


def require_shared_storage(config: RunConfig) -> None:
    """Refuse to work on several nodes that do not share their folders; call while connected.

    Raises:
        StageError: one line for each folder that some nodes do not share.
    """
    nodes = living_nodes()
    faults = storage_faults(config, nodes) if len(nodes) > 1 else []
    if faults:
        raise StageError("\n".join(faults))


def storage_faults(config: RunConfig, nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Write in each shared folder here, read it on every node, and the other way round.

    Args:
        config: says which folders: ``output_dir``, and ``shards_dir`` where it is a folder
            elsewhere. Folders that are missing are made for the test, then removed.
        nodes: of the cluster, as ``ray.nodes`` lists them.

    Returns:
        One line for each folder that some nodes do not share; nothing if all is well.
    """
    folder = RunFolder.of(config)
    places = {"output_dir": folder.root}
    if folder.shards_address is None and not folder.shards.is_relative_to(folder.root):
        places["shards_dir"] = folder.shards
    lines = []
    for option, place in places.items():
        reasons = _unshared(place, nodes)
        if reasons:
            lines.append(
                f"{option}: {place} is not shared storage: {'; '.join(reasons)}; allowed: a folder "
                "that every node mounts at the same path and can write"
            )
    return lines


def _unshared(folder: Path, nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is wrong with a folder on each node where something is."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    probe, secret, answers = folder / f".probe-{uuid.uuid4().hex}", uuid.uuid4().hex, []
    try:
        probe.write_text(secret)
        ask = ray.remote(_answer)
        running = [
            ask.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(probe, secret, number, _PATIENCE_SECONDS)
            for number, node in enumerate(nodes)
        ]
        ray.wait(running, num_returns=len(running), timeout=_ANSWER_SECONDS)
        for number, (node, task) in enumerate(zip(nodes, running, strict=True)):
            try:
                fault = ray.get(task, timeout=0)
            except RayError:
                fault = "does not answer"
            if not fault and not _appears(_reply(probe, number), secret, _PATIENCE_SECONDS):
                fault = "writes somewhere else"
            if fault and node["NodeID"] in _alive():  # a node may go at any time
                answers.append(f"{node['NodeManagerAddress']} {fault}")
    finally:
        for path in (probe, *(_reply(probe, number) for number in range(len(nodes)))):
            path.unlink(missing_ok=True)
        for path in made:
            path.rmdir()
    return answers


def _alive() -> set[str]:
    return {node["NodeID"] for node in living_nodes()}


def _reply(probe: Path, number: int) -> Path:
    return probe.with_name(f"{probe.name}-{number}")


def _answer(probe: Path, secret: str, number: int, patience: float) -> str:
    """Run on a node: read what the driver wrote, write an answer beside it."""
    if not _appears(probe, secret, patience):
        return "does not see it"
    try:
        _reply(probe, number).write_text(secret)
    except OSError as error:
        return f"cannot write in it ({error.strerror})"
    return ""


def _appears(path: Path, text: str, patience: float) -> bool:
    end = time.monotonic() + patience
    while not (path.exists() and path.read_text() == text):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
