"""Where a run is kept: its folder, or an object store of which a machine has a copy."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lasaft.errors import ConfigError, Problem
from pipeline.cluster import locks
from pipeline.cluster.store import Found, RemoteFolder, is_hidden
from pipeline.config.folders import TRIALS, RunFolder

_THREADS = 16
PREVIOUS, STAMP = "previous", "stamp.json"  # what steps have moved aside, and what says of what
# Folders of a run that the command itself does not read: tasks fetch what they need of them.
LARGE = ("shards", "songs", PREVIOUS, "logs", TRIALS)
# What processes that train make of a run: they take it to the store themselves.
TRAINED = ("training", "checkpoint", "checkpoints")
STATES = ("training/ray",)  # in the first of those: what Ray Train keeps and removes
# By address, what raises where this process has lost the right to write to a run.
guards: dict[str, Callable[[], None]] = {}
# What says of other files that they are whole: written after them, so that a command that is
# killed, or a reader in between, never takes half of something for the whole.
_LAST = ("steps/", "training/result.json")


class RunStore:
    """Brings files of a run here and takes them back; where the run is a folder, nothing is done.

    A copy is current while it has the size and the time of its object: whatever is written here
    gets another time. Each part of a run has one writer at a time, which calls :meth:`push`.
    Hidden files stay where they are.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.root = folder.root
        self.remote = None if folder.address is None else RemoteFolder(folder.address, "output_dir")

    def pull(self, *places: str, but: Iterable[str] = (), own: Collection[str] = ()) -> None:
        """Make the copies below ``places`` equal to the store's objects.

        Args:
            places: folders of the run; none: all of it.
            but: files and folders that are left as they are.
            own: what a run's folder has one of, if it has anything.

        Raises:
            ConfigError: the folder is one of something else.
            DataError: the store does not answer or refuses.
        """
        if self.remote is None:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".pull").open("w") as lock:  # processes of one machine share the copy
            locks.wait_for(lock)
            there, here = self._both(places, tuple(but))
            if own and there and not any(name.partition("/")[0] in own for name in there):
                reason = f"there is something else than a run ({min(there)})"
                allowed = "the address of a run, or of a folder that is not there yet"
                raise ConfigError(
                    Problem("output_dir", repr(str(self.remote)), allowed, reason=reason)
                )
            # What a process of this machine has just written may not be listed yet.
            self._pull(there | self.remote.by_name(here.keys() - there.keys()), here)

    def _pull(self, there: dict[str, Found], here: dict[str, Found]) -> None:
        self._each(self._get, [item for item in there.items() if here.get(item[0]) != item[1]])
        for name in here.keys() - there.keys():
            _drop(self.root / name)

    def push(self, *places: str, but: Iterable[str] = ()) -> None:
        """Make the store's objects below ``places`` equal to the copies.

        New objects come first, then what says that they are whole; removed ones go last.

        Raises:
            DataError: the store does not answer or refuses.
        """
        if self.remote is None:
            return
        guards.get(self.remote.address, lambda: None)()
        there, here = self._both(places, tuple(but))
        changed = [name for name, found in here.items() if there.get(name) != found]
        last = [name for name in changed if name.startswith(_LAST)]
        for names in ([name for name in changed if name not in last], last):
            self._each(self._put, [(name, there.get(name)) for name in names])
        self._each(self._delete, there.keys() - here.keys())

    def push_files(self, names: Iterable[str]) -> None:
        """Put these files of the run into the store."""
        if (remote := self.remote) is not None:
            self._each(lambda name: self._put((name, (remote / name).found())), names)

    def push_new(self, name: str) -> None:
        """Put a file of the run into the store, which has none of this name."""
        if self.remote is not None:
            self._put((name, None))

    def fetch(self, *places: str, but: Iterable[str] = ()) -> None:
        """Bring what is new below ``places`` here, as :meth:`pull` does, and remove nothing."""
        if self.remote is not None:
            there, here = self._both(places, tuple(but))
            self._pull(there, {name: here[name] for name in here.keys() & there.keys()})

    def fetch_stamps(self) -> None:
        """Bring the stamps of what steps have moved aside here, without the rest of it."""
        if self.remote is not None:
            there, here = self._both((PREVIOUS,), ())
            stamps = {name: one for name, one in there.items() if name.endswith(f"/{STAMP}")}
            self._pull(stamps, {name: here[name] for name in here.keys() & stamps.keys()})

    def recall(self, place: str) -> None:
        """Bring a folder of what was moved aside here, as new files: no copies of others."""
        self.fetch(place)
        if self.remote is not None:
            for name, _ in _files(self.root, [place]):
                os.utime(self.root / name)

    def push_moved(self) -> list[str]:
        """Put what steps have moved aside into the store; return what has come back from there.

        That is what has a stamp there and nothing here, after :meth:`fetch_stamps`. Songs and
        shards are not put: they can be made again.
        """
        if self.remote is None:
            return []
        there, here = self._both((PREVIOUS,), ())
        large = {_aside(name)[0] for name in here if _aside(name)[1] in LARGE}
        new = [name for name in here.keys() - there.keys() if _aside(name)[0] not in large]
        for is_stamp in (False, True):  # it comes last
            names = [name for name in new if name.endswith(f"/{STAMP}") == is_stamp]
            self._each(self._put, [(name, None) for name in names])
        known = {_aside(name)[0] for name in there if name.endswith(f"/{STAMP}")}
        return [f"{PREVIOUS}/{name}" for name in known - {_aside(name)[0] for name in here}]

    def remove(self, place: str) -> None:
        """Remove a folder or a file of the run here and in the store; it may be missing."""
        path = self.root / place
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        if self.remote is not None:
            self._each(self._delete, self.remote.at(place))

    def _both(
        self, places: tuple[str, ...], but: tuple[str, ...]
    ) -> tuple[dict[str, Found], dict[str, Found]]:
        """Return what lies in the store and here."""
        assert self.remote is not None
        there: dict[str, Found] = {}
        for place in places or ("",):
            there |= self.remote.listing(place)
        here = dict(_files(self.root, places or ("",)))
        return _visible(there, but), _visible(here, but)

    def _get(self, item: tuple[str, Found]) -> None:
        assert self.remote is not None
        (name, found), path = item, self.root / item[0]
        (self.remote / name).get(path)
        _set_time(path, found)

    def _put(self, item: tuple[str, Found | None]) -> None:
        assert self.remote is not None
        (name, before), path = item, self.root / item[0]
        file = self.remote / name
        file.put(path)
        # What replaces an object of the same size within a second would look like the old one.
        while (now := file.found()) == before and before is not None:
            time.sleep(0.5)
            file.put(path)
        _set_time(path, now)

    def _delete(self, name: str) -> None:
        assert self.remote is not None
        (self.remote / name).delete()

    def _each(self, act: Callable[..., None], items: Iterable[object]) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(act, items):
                pass


def _aside(name: str) -> tuple[str, str]:
    """Return the folder below ``previous/`` that a file lies in, and the part of a run in that."""
    _, folder, part, *_ = (*name.split("/"), "", "")
    return folder, part


def _files(root: Path, places: Iterable[str]) -> Iterator[tuple[str, Found]]:
    for place in places:
        for path in (root / place).rglob("*"):
            if path.is_file():
                yield path.relative_to(root).as_posix(), _state(path)


def _visible(found: dict[str, Found], out: tuple[str, ...]) -> dict[str, Found]:
    """Return what is not hidden, and neither left out nor in a folder that is."""
    folders = tuple(f"{name}/" for name in out)
    return {
        name: file
        for name, file in found.items()
        if not is_hidden(name) and name not in out and not name.startswith(folders)
    }


def _state(path: Path) -> Found:
    """Return size and time of a file; only a copy has a time in whole seconds."""
    status = path.stat()
    seconds, rest = divmod(status.st_mtime_ns, 10**9)
    return Found(status.st_size, None if rest else seconds)


def _set_time(path: Path, found: Found | None) -> None:
    if found is not None and found.seconds is not None and path.stat().st_size == found.size:
        time_ns = found.seconds * 10**9
        os.utime(path, ns=(time_ns, time_ns))


def _drop(path: Path) -> None:
    """Remove a file, and its folder where nothing else is in it: a store has no empty ones."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()
