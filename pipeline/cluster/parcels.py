"""What goes with a task to its node, and comes back, where a run lies in an object store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasaft.files import atomic_write_bytes
from pipeline.cluster.run_store import RunStore
from pipeline.config.folders import RunFolder

Contents = Mapping[str, bytes | None]


@dataclass(frozen=True)
class Parcel:
    """What a task needs of a run, on whatever node it is done.

    Args:
        folder: of the run; a node's copy lies at the path of the command's.
        reads: folders that the node fetches from the store.
        writes: those of them that it takes back there.
        files: small files as the command has them, None where it has none; what the task makes
            of them comes back with its result.
    """

    folder: RunFolder
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    files: Contents

    def unpack(self) -> None:
        """Bring everything to this node."""
        if self.reads:
            RunStore(self.folder).pull(*self.reads)
        for name, data in self.files.items():
            if data is not None:
                atomic_write_bytes(self.folder.root / name, data)

    def do(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, bytes]]:
        """Return the function's result on this node, and the files that it has changed."""
        self.unpack()
        result = function(*arguments)
        if self.writes:
            RunStore(self.folder).push(*self.writes)
        now = _contents(self.folder.root, self.files)
        changed = {name: data for name, data in now.items() if data != self.files[name]}
        return result, {name: data for name, data in changed.items() if data is not None}

    def keep(self, changed: Mapping[str, bytes]) -> None:
        """Keep what came back, here and in the store; the command calls it."""
        for name, data in changed.items():
            atomic_write_bytes(self.folder.root / name, data)
        RunStore(self.folder).push_files(changed)


def parcel(
    folder: RunFolder,
    *,
    reads: Iterable[Path] = (),
    writes: Collection[Path] = (),
    files: Iterable[Path] = (),
) -> Parcel | None:
    """Return what goes with a task; None where the run is a folder that all nodes share.

    Args:
        reads: folders of the run that the task reads; what lies outside of the run is left out.
        writes: folders of the run that it writes.
        files: files of the run that it reads or writes, a few kB each.
    """
    if folder.address is None:
        return None

    def names(paths: Iterable[Path]) -> tuple[str, ...]:
        inside = {path for path in paths if path.is_relative_to(folder.root)}
        return tuple(sorted(path.relative_to(folder.root).as_posix() for path in inside))

    return Parcel(
        folder, names([*reads, *writes]), names(writes), _contents(folder.root, names(files))
    )


def _contents(root: Path, names: Iterable[str]) -> Contents:
    return {name: (root / name).read_bytes() if (root / name).exists() else None for name in names}
