"""What goes with a task to a node that does not see the command's folders, and comes back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasaft.files import atomic_write_bytes, read_steadily
from pipeline.cluster.inputs import InputFolder
from pipeline.cluster.run_store import RunStore
from pipeline.cluster.store import note_written, written_lately
from pipeline.config.folders import Input, RunFolder

Contents = Mapping[str, bytes | None]


@dataclass(frozen=True)
class Parcel:
    """What a task needs on whatever node it is done; a node's copies lie at the command's paths.

    Args:
        folder: of the run.
        inputs: what the node fetches of folders at addresses, which it bounds.
        reads: folders of the run that the node fetches from the store.
        writes: those of them that it takes back there.
        files: small files of the run as the command has them, None where it has none; what the
            task makes of them comes back with its result.
        written: what has been written to stores lately, which may not list it yet.
    """

    folder: RunFolder
    inputs: tuple[tuple[Input, tuple[str, ...]], ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    files: Contents
    written: tuple[str, ...]

    @contextmanager
    def unpacked(self) -> Iterator[None]:
        """Have everything on this node inside the ``with``."""
        note_written(self.written)
        with ExitStack() as stack:
            for source, places in self.inputs:
                stack.enter_context(InputFolder(source).at_hand(places))
            if self.reads:
                RunStore(self.folder).pull(*self.reads)
            for name, data in self.files.items():
                if data is not None:
                    atomic_write_bytes(self.folder.root / name, data)
            yield

    def do(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, bytes]]:
        """Return the function's result on this node, and the files that it has changed."""
        with self.unpacked():
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
    """Return what goes with a task; None where all nodes share the folders that it needs.

    Args:
        reads: folders of the run, or of what it reads at addresses, that the task reads; what
            lies elsewhere is left out.
        writes: folders of the run that it writes.
        files: files of the run that it reads or writes, a few kB each.
    """
    reads = [*reads]
    pairs = ((source, _names(source.root, reads)) for source in folder.inputs)
    inputs = tuple((source, names) for source, names in pairs if names)
    if folder.address is None:
        return Parcel(folder, inputs, (), (), {}, ()) if inputs else None
    root = folder.root
    return Parcel(
        folder,
        inputs,
        _names(root, [*reads, *writes]),
        _names(root, writes),
        _contents(root, _names(root, files)),
        tuple(written_lately()),
    )


def _names(root: Path, paths: Iterable[Path]) -> tuple[str, ...]:
    inside = {path for path in paths if path.is_relative_to(root)}
    named = ("" if path == root else path.relative_to(root).as_posix() for path in inside)
    return tuple(sorted(named))


def _contents(root: Path, names: Iterable[str]) -> Contents:
    return {name: read_steadily(root / name) if (root / name).exists() else None for name in names}
