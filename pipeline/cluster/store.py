"""Folders in object stores (S3 and its like, or whatever fsspec knows), read and written."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import urlsplit

from lasaft.errors import ConfigError, DataError
from lasaft.files import atomic_path
from pipeline.cluster.progress import say
from pipeline.config.fingerprints import names_hash

if TYPE_CHECKING:
    from pathlib import Path

    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

Result = TypeVar("Result")

_CHUNK_BYTES = 16 * 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)
# Arrow's own S3 client tries for some 6 s before it reports a lost connection. A store that is away
# for a minute is waited for; one that has never answered may be none.
PAUSES_SECONDS = [0.5, 2.0, 8.0, 20.0, 30.0]
_FIRST_PAUSES_SECONDS = [0.5, 2.0]
# Credentials that expire in the middle of a run may be renewed: the libraries read them again.
RENEWAL_PAUSES_SECONDS = [30.0] * 28
_TOLD_SECONDS = 2.0
# A store may list what was just written some seconds late; for so long it is asked for by its name.
_LATE_SECONDS = 60.0
_LOOKING_THREADS = 16
# What this process, and those that have told it, have written lately: names, and when (monotonic).
_written: dict[str, float] = {}
# What Arrow opens itself, and with which options: a small object at S3 is one request, not three;
# Google's client alone would try for 15 minutes, also without credentials.
_ARROW_SCHEMES = {
    "s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=6", "gcs": "retry_limit_seconds=6",
    "abfs": "", "abfss": "", "hdfs": "", "viewfs": "",
}  # fmt: skip
# Answers of a store that will be the same next time.
_FINAL = re.compile(
    r"(ACCESS|PERMISSION)_?DENIED|INVALID_?ACCESS_?KEY|INVALID_?CLIENT_?TOKEN|SIGNATURE|"
    r"NO_?SUCH_?BUCKET|UNRECOGNIZED|credential|HTTP response code 40[13]|Forbidden|"
    r"Unauthorized|HTTP status 301",
    re.I,
)
# An answer without a body, as to the question whether an object is there, says 400 alone.
_EXPIRED = re.compile(r"Expired|HTTP status 400", re.I)


@dataclass(frozen=True)
class Found:
    """An object: its length in bytes, and when it was written, in whole seconds of the store."""

    size: int
    seconds: int | None  # None where the store does not say


def _seconds(nanoseconds: int | None) -> int | None:
    return None if nanoseconds is None else nanoseconds // 10**9


class RemoteFolder:
    """A folder of an object store; safe to use from many threads. No file is touched at first.

    Args:
        address: ``s3://bucket/folder``, with options of pyarrow.fs behind a ``?``
            (``endpoint_override``, ``scheme``, ``region``), or an address that fsspec knows.
        option: which gave the address, for messages.
    """

    def __init__(self, address: str, option: str = "shards_dir") -> None:
        self.address, self._option = address, option
        self._shown = address.partition("?")[0].rstrip("/")
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return self._shown

    def __reduce__(self) -> tuple[type[RemoteFolder], tuple[str, str]]:
        return RemoteFolder, (self.address, self._option)

    def __truediv__(self, name: str) -> RemoteFile:
        return RemoteFile(self, name)

    @cached_property
    def _place(self) -> tuple[FileSystem, str]:
        from pyarrow import ArrowException, fs

        option = _ARROW_SCHEMES.get(urlsplit(self.address).scheme)
        try:
            if option is not None:
                system, path = fs.FileSystem.from_uri(self._with(option))
            else:
                from fsspec.core import url_to_fs

                found, path = url_to_fs(self.address)
                system = fs.PyFileSystem(fs.FSSpecHandler(found))
        except (ArrowException, ImportError, OSError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{self._option}: {self} cannot be used ({first_line(error)}); allowed: an "
                "address that pyarrow.fs or an installed fsspec package knows, such as "
                "s3://bucket/folder"
            ) from error
        return system, path.rstrip("/")

    def _with(self, option: str) -> str:
        """Return the address with an option, unless it says that itself or there is none."""
        if option.partition("=")[0] in self.address:
            return self.address
        return f"{self.address}{'&' if '?' in self.address else '?'}{option}"

    def place(self, name: str) -> tuple[FileSystem, str]:
        """Return the file system, and the path in it, of a file of the folder.

        Raises:
            ConfigError: the address has a form that no file system takes.
        """
        with self._lock:
            system, path = self._place
        return system, f"{path}/{name}".rstrip("/")

    def reach(self) -> None:
        """Return once the store has answered; one that does not is not waited for as later on.

        Raises:
            ConfigError: an object lies there.
            DataError: it does not answer or refuses.
        """
        system, path = self.place("")
        ask = partial(system.get_file_info, path)
        if patiently(str(self), ask, pauses=_FIRST_PAUSES_SECONDS).is_file:
            raise ConfigError(f"{self._option}: {self} is an object, no folder; allowed: a folder")

    def listing(self, below: str = "") -> dict[str, Found]:
        """Return what lies below a folder of this one: names in this one, sizes and times.

        Raises:
            DataError: the store does not answer or refuses.
        """
        from pyarrow.fs import FileSelector

        system, path = self.place(below)
        every = FileSelector(path, recursive=True, allow_not_found=True)
        found = patiently(f"{self}/{below}", lambda: system.get_file_info(every))
        start = len(self.place("")[1]) + 1
        listed = {
            info.path[start:]: Found(info.size, _seconds(info.mtime_ns))
            for info in found
            if info.is_file
        }
        return listed | self.by_name(self._late(below) - listed.keys())

    def by_name(self, names: Iterable[str]) -> dict[str, Found]:
        """Return which of these files are there, each asked for by its name."""
        with ThreadPoolExecutor(_LOOKING_THREADS) as pool:
            looked = pool.map(lambda name: (name, (self / name).found()), names)
            return {name: found for name, found in looked if found is not None}

    def _late(self, below: str) -> set[str]:
        """Return what was written lately below a folder of this one."""
        start, place = f"{self}/", str(self / below) if below else str(self)
        return {
            name.removeprefix(start) for name in written_lately() if name.startswith(f"{place}/")
        }

    def at(self, place: str) -> dict[str, Found]:
        """Return what lies below ``place``, as :meth:`listing` does, or the object that it is."""
        there = self.listing(place)
        if not there and place and (found := (self / place).found()) is not None:
            return {place: found}
        return there

    def names_hash(self, below: str = "", but: str = "/") -> str | None:
        """Return the hash of names and sizes that a plain copy of the folder would have.

        Args:
            but: what the names of objects end in that do not count.
        """
        start = len(below) + 1 if below else 0
        found = {name[start:]: one.size for name, one in self.listing(below).items()}
        return names_hash(
            {n: s for n, s in found.items() if not is_hidden(n) and not n.endswith(but)}
        )


def is_hidden(name: str) -> bool:
    """Return whether an object's name, or that of a folder around it, begins with a dot."""
    return name.startswith(".") or "/." in name


class RemoteFile:
    """One file of a :class:`RemoteFolder`; its text is its address.

    Every method raises a DataError where the store does not answer or refuses.
    """

    def __init__(self, folder: RemoteFolder, name: str) -> None:
        self._folder, self._name = folder, name

    def __str__(self) -> str:
        return f"{self._folder}/{self._name}"

    def open(self) -> NativeFile:
        """Open the file for reads at any place, from any thread; DataError if it is not there."""
        system, path = self._folder.place(self._name)
        return patiently(str(self), lambda: system.open_input_file(path))

    def read_bytes(self) -> bytes:
        """Return the whole file, as ``Path.read_bytes`` does.

        Raises:
            FileNotFoundError: it is not there.
        """
        system, path = self._folder.place(self._name)

        def read() -> bytes | None:
            try:
                with system.open_input_stream(path) as file:
                    return file.read()
            except FileNotFoundError:
                return None

        data = patiently(str(self), read)
        if data is None:
            raise FileNotFoundError(str(self))
        return data

    def write_bytes(self, data: bytes) -> None:
        """Make ``data`` the whole file."""
        system, path = self._folder.place(self._name)

        def write() -> None:
            with system.open_output_stream(path) as file:
                file.write(data)

        patiently(str(self), write)
        note_written([str(self)])

    def put(self, source: Path) -> str:
        """Copy a local file here; return the sha256 of what was copied."""
        system, path = self._folder.place(self._name)

        def copy() -> str:
            with source.open("rb") as file, system.open_output_stream(path) as out:
                digest = hashlib.sha256()
                while data := file.read(_CHUNK_BYTES):
                    digest.update(data)
                    out.write(data)
            return digest.hexdigest()

        sha256 = patiently(str(self), copy)
        note_written([str(self)])
        return sha256

    def get(self, target: Path) -> None:
        """Copy the file to a local one, whole or not at all."""
        system, path = self._folder.place(self._name)

        def copy(temporary: Path) -> None:
            with system.open_input_stream(path) as file, temporary.open("wb") as out:
                shutil.copyfileobj(file, out, _CHUNK_BYTES)

        with atomic_path(target) as temporary:
            patiently(str(self), lambda: copy(temporary))

    def delete(self) -> None:
        """Delete the file; DataError if it is not there."""
        system, path = self._folder.place(self._name)
        patiently(str(self), lambda: system.delete_file(path))
        _written.pop(str(self), None)

    def sha256(self) -> str:
        """Return the sha256 of the whole file; DataError if it is not there."""
        digest = hashlib.sha256()
        with self.open() as file:
            for data in self.chunks(file, file.size()):
                digest.update(data)
        return digest.hexdigest()

    def chunks(
        self, file: NativeFile, size: int, stop: threading.Event | None = None
    ) -> Iterator[bytes]:
        """Yield the first ``size`` bytes of the open file, piece by piece."""
        for start in range(0, size, _CHUNK_BYTES):
            count = min(_CHUNK_BYTES, size - start)
            yield patiently(str(self), partial(file.read_at, count, start), stop)

    def found(self) -> Found | None:
        """Return the file's length and time, None where there is no file."""
        system, path = self._folder.place(self._name)
        info = patiently(str(self), lambda: system.get_file_info(path))
        return Found(info.size, _seconds(info.mtime_ns)) if info.is_file else None

    def size(self) -> int | None:
        """Return the file's length in bytes, None where there is no file."""
        found = self.found()
        return None if found is None else found.size


def written_lately() -> list[str]:
    """Return the names of what was written lately, as text of :class:`RemoteFile`."""
    since = time.monotonic() - _LATE_SECONDS
    for name, when in _written.copy().items():
        if when <= since:
            _written.pop(name, None)
    return list(_written)


def note_written(names: Iterable[str]) -> None:
    """Count these as written lately: here, or by a process that has told its own."""
    _written.update(dict.fromkeys(names, time.monotonic()))


def patiently(
    name: str,
    action: Callable[[], Result],
    stop: threading.Event | None = None,
    pauses: Sequence[float] | None = None,
) -> Result:
    """Return ``action()``, tried again after pauses while the store does not answer.

    Args:
        action: reads or writes it; an OSError of it means that the store failed.
        stop: ends the waiting.
        pauses: between the tries, in seconds (None: :data:`PAUSES_SECONDS`, and where credentials
            may have expired :data:`RENEWAL_PAUSES_SECONDS` too).

    Raises:
        DataError: the file is missing, the store refuses, or goes on failing.
    """
    usual = PAUSES_SECONDS if pauses is None else pauses
    longer = RENEWAL_PAUSES_SECONDS if pauses is None else []
    for tries, pause in enumerate([*usual, *longer, None], 1):
        try:
            return action()
        except FileNotFoundError as error:
            raise DataError(f"{name}: there is no such object") from error
        except Exception as error:
            # What it is not, or a full disk here, to which something was copied.
            if not _is_of_store(error) or getattr(error, "errno", None) in FULL:
                raise
            expired = _EXPIRED.search(str(error)) is not None
            over = tries > len(usual) and not (expired and pause is not None)
            if pause is None or over or (stop is not None and stop.is_set()):
                _give_up(name, error, f", tried {tries} times")
            if _FINAL.search(str(error)):
                _give_up(name, error, "")
            if pause >= _TOLD_SECONDS:
                renewal = "; renew the credentials, if they have expired" if expired else ""
                say(f"{name}: the store fails ({first_line(error)}); waiting {pause:g} s{renewal}")
        time.sleep(pause) if stop is None else stop.wait(pause)
    raise AssertionError("the last try returns or raises")


def _is_of_store(error: Exception) -> bool:
    """Return whether a file system said it; what Arrow has no name for it says as "unknown"."""
    from pyarrow import ArrowException

    return isinstance(error, OSError) or type(error) is ArrowException


def _give_up(name: str, error: Exception, how: str) -> NoReturn:
    raise DataError(
        f"{name}: the store fails ({first_line(error)}){how}; look at the address and its "
        "region, the network and the credentials (in the environment AWS_*, AZURE_* or GOOGLE_*)"
    ) from error


def first_line(error: Exception) -> str:
    """Return the beginning of what an error says, on one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
