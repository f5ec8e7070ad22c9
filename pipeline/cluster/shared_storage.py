"""Whether every node sees the folders of a run: those of now, and those that come later."""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasaft.errors import ConfigError, LasaftError, StageError
from pipeline.cluster.address import named_address
from pipeline.cluster.connection import connected, living_nodes
from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder

# Some network file systems show a new file only after a while.
_PATIENCE_SECONDS = 5.0
# A node that is busy starting takes some seconds; one whose file system hangs never answers.
_ANSWER_SECONDS = 60.0
# After which a node that died counts as dead.
_DEATH_SECONDS = 30.0
_SILENT = "does not answer"
_PROBE = b"written by a node, to be read again"


class UnsharedError(StageError):
    """A node does not see a folder of the run as the command does."""


@dataclass(frozen=True)
class Seen:
    """What the command sees in a folder of the run, and so should every node."""

    option: str  # which says the folder
    folder: Path
    names: tuple[str, ...]  # paths in it

    @property
    def written(self) -> bool:
        """Whether nodes write there."""
        return self.option != "musdb_root"

    def fault(self, patience: float) -> str:
        """Return what is wrong on this node, empty if nothing is."""
        end = time.monotonic() + patience
        while missing := [name for name in self.names if not (self.folder / name).exists()]:
            if time.monotonic() > end:
                count = f"{len(missing)} of {len(self.names)}, the first is {missing[0]!r}"
                return "does not see it" if self.written else f"lacks what is in it ({count})"
            time.sleep(0.1)
        return "" if os.access(self.folder, os.W_OK) or not self.written else "cannot write in it"

    def line(self, *faults: str) -> str:
        """Return one line that says on which nodes something is wrong."""
        return (
            f"{self.option}: {self.folder} is not shared storage: {'; '.join(faults)}; allowed: a "
            f"folder that every node mounts at the same path{' and can write' * self.written}"
        )


@dataclass(frozen=True)
class Reached:
    """A folder in an object store, which every node must be able to read, and a run's to write."""

    option: str  # which says the address
    address: str
    written: bool  # whether nodes write there

    def fault(self, patience: float) -> str:
        """Return what is wrong on this node, empty if nothing is."""
        folder = RemoteFolder(self.address, self.option)
        file = folder / f".probe-{uuid.uuid4().hex}"
        try:
            if not self.written:
                folder.reach()
                return ""
            file.write_bytes(_PROBE)
            found = file.read_bytes()
            file.delete()
        except (LasaftError, OSError) as error:
            return f"cannot use it ({error})"
        return "" if found == _PROBE else "reads other bytes than it has written"

    def line(self, *faults: str) -> str:
        """Return one line that says on which nodes something is wrong."""
        right = ", with the right to write there" if self.written else ""
        return (
            f"{self.option}: {RemoteFolder(self.address)} is not for every node: "
            f"{'; '.join(faults)}; allowed: an address that each node reaches{right}"
        )


def require_writable_address(option: str, address: str) -> None:
    """Refuse an address where this machine cannot write.

    Raises:
        ConfigError: says what the store answers.
    """
    place = Reached(option, address, written=True)
    if fault := place.fault(0):
        raise ConfigError(place.line(f"this machine {fault}"))


@contextmanager
def ready_cluster(config: RunConfig, purpose: str) -> Iterator[None]:
    """Be connected to Ray inside the ``with``, and sure that its nodes share their folders.

    Args:
        config: of the run.
        purpose: for people, what Ray is needed for.

    Raises:
        ConfigError: no cluster answers.
        StageError: some nodes do not see or cannot write a folder of the run.
    """
    with connected(config.cluster, purpose):
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


def seen_folders(config: RunConfig) -> tuple[Seen, ...]:
    """Return what a node must see that works on a run; nothing where only this machine does.

    A folder that the run writes gets a hidden file whose name no other folder has.
    """
    if named_address(config.cluster) is None:
        return ()
    written = (Seen(option, place, _mark(place)) for option, place in _written(config).items())
    return *written, *_songs(config)


@functools.cache
def require_seen(folders: tuple[Seen, ...]) -> None:
    """Refuse to work in this process, on a node that does not see the folders; looks once.

    Raises:
        UnsharedError: names the node and the folder.
    """
    import ray.util

    for seen in folders:
        if fault := seen.fault(_PATIENCE_SECONDS):
            raise UnsharedError(seen.line(f"{ray.util.get_node_ip_address()} {fault}"))


def storage_faults(config: RunConfig, nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line for each place of the run that some nodes do not see as this process does.

    Written folders that are missing are made for the test, then removed.

    Args:
        config: says which folders: ``output_dir``, ``musdb_root``, and ``shards_dir`` where it is a
            folder elsewhere.
        nodes: of the cluster, as ``ray.nodes`` lists them.
    """
    probe, written = f".probe-{uuid.uuid4().hex}", _written(config)
    ways = {path for folder in written.values() for path in (folder, *folder.parents)}
    made = sorted((path for path in ways if not path.exists()), reverse=True)
    try:
        for folder in written.values():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / probe).touch()
        folders: list[Seen | Reached] = [Seen(*place, (probe,)) for place in written.items()]
        folders += _songs(config)
        folder = RunFolder.of(config)
        folders += [Reached(one.option, one.address, written=False) for one in folder.inputs]
        if folder.address is not None:
            folders.append(Reached("output_dir", folder.address, written=True))
        found = [(seen, _faults(seen, nodes)) for seen in folders]
        return [seen.line(*faults) for seen, faults in found if faults]
    finally:
        for folder in written.values():
            (folder / probe).unlink(missing_ok=True)
        for path in made:
            path.rmdir()


def _faults(seen: Seen | Reached, nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is wrong with a folder on each node where something is."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look: Any = ray.remote(type(seen).fault)
    answers, faults = [], {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = look.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        answers.append(task.remote(seen, _PATIENCE_SECONDS))
    ray.wait(answers, num_returns=len(answers), timeout=_ANSWER_SECONDS)
    for node, answer in zip(nodes, answers, strict=True):
        try:
            faults[node["NodeID"]] = ray.get(answer, timeout=0)
        except RayError:
            faults[node["NodeID"]] = _SILENT
    # A node may go at any time; where it is not told to, Ray finds out some seconds later.
    alive, end = _alive(), time.monotonic() + _DEATH_SECONDS
    while time.monotonic() < end and any(faults[node] == _SILENT for node in alive & faults.keys()):
        time.sleep(0.2)
        alive = _alive()
    return [
        f"{node['NodeManagerAddress']} {faults[node['NodeID']]}"
        for node in nodes
        if faults[node["NodeID"]] and node["NodeID"] in alive
    ]


def _alive() -> set[str]:
    return {node["NodeID"] for node in living_nodes()}


def _written(config: RunConfig) -> dict[str, Path]:
    """Return the folders that nodes write, by the option that says each."""
    folder = RunFolder.of(config)
    places = {"output_dir": folder.root} if folder.address is None else {}
    if folder.shards_address is None and not folder.shards.is_relative_to(folder.root):
        places["shards_dir"] = folder.shards
    return places


def _songs(config: RunConfig) -> list[Seen]:
    root = config.data.musdb_root
    if not isinstance(root, Path):
        return []
    found = [path for pattern in ("[!.]*", "[!.]*/[!.]*") for path in root.glob(pattern)]
    names = tuple(sorted(str(path.relative_to(root)) for path in found))
    return [Seen("musdb_root", root.absolute(), names)]


def _mark(folder: Path) -> tuple[str, ...]:
    """Return the hidden file that only this folder has."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(path.name for path in folder.glob(".folder-*"))
    if not found:
        found = [f".folder-{uuid.uuid4().hex}"]
        (folder / found[0]).touch()
    return (found[0],)
