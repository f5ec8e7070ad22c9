"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from lasaft.errors import StageError

Result = TypeVar("Result")

# Not allowed in file names on one system or another, with a meaning in paths, or not Unicode.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]')
SPECIAL = "a pipe, a socket or a device"
_LONGEST_NAME_BYTES = 180  # leaves room for endings below the 255 of common file systems


def safe_name(name: str) -> str:
    """Return ``name`` as one part of a path that is good on every system.

    A name that is good already stays as it is. A long one is cut and told apart by a sum; other
    names may fall together.

    >>> safe_name("../AC/DC: Back?")
    '_AC_DC_ Back_'
    """
    safe = _UNSAFE.sub("_", name).strip(" .") or "_"
    if len(safe.encode()) > _LONGEST_NAME_BYTES:
        sum_ = zlib.crc32(safe.encode())
        safe = f"{safe.encode()[:_LONGEST_NAME_BYTES].decode(errors='ignore')}-{sum_:08x}"
    return safe


def first_link(places: Iterable[Path]) -> Path | None:
    """Return the first of ``places``, or of the folders in them, that is a link; None: none is.

    Nothing is written where a link leads, which others may have chosen. A file that is a link and
    is written whole is replaced.
    """
    for place in places:
        if place.is_symlink():
            return place
        for top, folders, _ in os.walk(place):
            for name in sorted(folders):
                if (folder := Path(top, name)).is_symlink():
                    return folder
    return None


def link_on_the_way(path: Path, top: Path) -> Path | None:
    """Return the first of ``path`` and the folders around it below ``top`` that is a link."""
    inside = [path, *path.parents][: len(path.parts) - len(top.parts)]
    return next((place for place in reversed(inside) if place.is_symlink()), None)


def no_file(path: Path) -> str:
    """Return what is to be said of a path at which there is no file."""
    if path.is_dir():
        return "is a folder"
    return f"is {SPECIAL}" if path.exists() else "does not exist"


def first_special(places: Iterable[Path]) -> Path | None:
    """Return the first of ``places``, or of all in them, that is neither a file nor a folder.

    Whoever opens a pipe waits for ever. Links are followed, for they are read too.
    """
    seen: set[str] = set()
    for place in places:
        if place.exists() and not place.is_file() and not place.is_dir():
            return place
        for top, folders, files in os.walk(place, followlinks=True):
            real = os.path.realpath(top)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            for name in sorted(files):
                if (file := Path(top, name)).exists() and not file.is_file():
                    return file
    return None


def open_own(path: Path, mode: str, **options: Any) -> IO[Any]:
    """Open a file to write, which is made where it is missing, but not where a link leads.

    Raises:
        OSError: it is a link or no file, or cannot be opened.
    """

    def opened(name: str, flags: int) -> int:
        # Without waiting: it may be a pipe.
        handle = os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
        raise OSError(errno.ENXIO, "", name)

    try:
        return open(path, mode, opener=opened, **options)
    except OSError as error:
        said = {
            errno.ELOOP: "is a link, and nothing is written where a link leads",
            errno.ENXIO: f"is {SPECIAL}",
        }
        error.strerror = said.get(error.errno or 0, error.strerror)
        raise


# What a file system on another machine answers while that is away, or has forgotten a file.
AWAY = frozenset(
    getattr(errno, name)
    for name in (
        "ESTALE", "EIO", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN",
        "ENETUNREACH", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ESHUTDOWN", "EREMOTEIO",
    )
    if hasattr(errno, name)
)  # fmt: skip
AWAY_SECONDS = [0.5, 2.0, 5.0]  # pauses before further tries


def steadily(action: Callable[[], Result], path: object) -> Result:
    """Return ``action()`` on a file, tried again a few times where its file system is away.

    Raises:
        OSError: of the last try; names the file, which reads and writes themselves do not.
    """
    pauses = iter(AWAY_SECONDS)
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = str(path)
            pause = next(pauses, None)
            if error.errno not in AWAY or pause is None:
                raise
        time.sleep(pause)


def read_steadily(path: Path) -> bytes:
    """Return a whole file, as :func:`steadily` gets it."""
    return steadily(path.read_bytes, path)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""

    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return steadily(read, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    # A name of 255 bytes leaves no room for a suffix, so a long one is cut and told apart by a sum.
    return path.with_name(
        f".{path.name[:48]}.{zlib.crc32(os.fsencode(path.name)):08x}.tmp-{os.getpid()}"
    )


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it becomes ``path``, else it is removed.

    The file is synced before the rename and its folder after it, so a crash leaves the old file
    or the new one. The folder is made if it is missing.
    """
    with atomic_paths([path]) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield a temporary path beside each of ``paths``; all become those on success, or none."""
    temporaries = [_temporary(path) for path in paths]
    pairs = list(zip(temporaries, paths, strict=True))
    published: list[Path] = []
    try:
        made = {path.parent for path in paths if not path.parent.exists()}
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)  # it may be a link
        yield temporaries
        for temporary in temporaries:
            _sync(temporary)
        for temporary, path in pairs:
            temporary.replace(path)
            published.append(path)
        for parent in {path.parent for path in paths} | {folder.parent for folder in made}:
            _sync(parent)
    except BaseException as error:
        for path in published if len(published) < len(paths) else ():
            path.unlink(missing_ok=True)
        for temporary, path in pairs:
            _name_target(error, temporary, path)
        raise
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _name_target(error: BaseException, temporary: Path, path: Path) -> None:
    """Let an error name the file that is wanted instead of the temporary one."""
    if not isinstance(error, OSError):
        return
    if error.filename is not None and os.fspath(error.filename) == str(temporary):
        error.filename, error.filename2 = str(path), None


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)

    steadily(write, path)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path``, whole or not at all."""
    atomic_write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return ``value`` as it stands in a file of JSON."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path, keys: Set[str], advice: str) -> dict[str, Any]:
    """Return the JSON object in ``path``, which has at least these ``keys``.

    Raises:
        StageError: it has not, or cannot be read; ends with ``advice``.
        OSError: its file system is away.
    """
    try:
        found = json.loads(read_steadily(path))
        if not isinstance(found, dict) or not keys <= found.keys():
            raise ValueError(f"it is not what was written: {str(found)[:40]}")
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in AWAY:
            raise
        raise StageError(f"{path}: is damaged ({error}); {advice}") from error
    return found


@contextmanager
def publish_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that replaces it on success, else is removed.

    Between the two renames of a replacement ``folder`` is missing for an instant; the old one is
    then ``.<name>.old-<pid>`` and :func:`recover_folder` puts it back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = _temporary(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        yield fresh
        for item in fresh.rglob("*"):
            if item.is_file() or item.is_dir():
                _sync(item)
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.exists():
            folder.replace(old)
        fresh.replace(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        _name_target(error, fresh, folder)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put back the old ``folder`` if a crash hit between the two renames; drop any leftovers.

    Only the folder's one writer may call it, before it publishes again.
    """
    folder = Path(os.path.realpath(folder))  # a link stays, what it leads to is replaced
    if not folder.parent.is_dir():
        return
    # A process's number at the end; whatever else is called alike is somebody else's.
    old = re.compile(re.escape(f".{folder.name}.old-") + r"\d+")
    fresh = re.compile(re.escape(str(_temporary(folder).name).rpartition("-")[0]) + r"-\d+")
    there = sorted(path for path in folder.parent.iterdir() if path.is_dir())
    leftovers = [path for path in there if old.fullmatch(path.name)]
    if leftovers and not folder.exists():
        leftovers.pop().replace(folder)
    unfinished = [path for path in there if fresh.fullmatch(path.name)]
    for leftover in [*leftovers, *unfinished]:
        shutil.rmtree(leftover)
