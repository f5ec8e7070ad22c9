"""Hashes that name files: by content where they are small, by size and time where they are not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lasaft.files import file_sha256


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash(*paths: Path) -> str | None:
    """Return the hash of all files in ``paths`` (files or folders), or None if a path is missing.

    Hidden files do not count: they are other programs' (``.DS_Store``) or not finished yet.
    """
    return _tree_hash(paths, file_sha256)


def names_hash(sizes: Mapping[str, int]) -> str | None:
    """Return what :func:`listing_hash` does for a folder of such files; None if there are none."""
    return digest([{name: [size] for name, size in sizes.items()}]) if sizes else None


def listing_hash(*paths: Path, times: bool = False, but: str = "/") -> str | None:
    """Return the hash of the names and sizes of all files in ``paths``, or None if one is missing.

    Args:
        times: the times of the last change count too; for files that are not ours.
        but: what the names of files end in that do not count.
    """

    def look(file: Path) -> list[int]:
        status = file.stat()
        return [status.st_size, status.st_mtime_ns] if times else [status.st_size]

    return _tree_hash(paths, look, but)


def _tree_hash(paths: Iterable[Path], look: Any, but: str = "/") -> str | None:
    entries: list[Mapping[str, Any]] = []
    for path in paths:
        if not path.exists():
            return None
        base = path if path.is_dir() else path.parent
        files = (file for file in _files(path) if not file.name.endswith(but))
        entries.append({str(file.relative_to(base)): look(file) for file in files})
    return digest(entries)


def _files(path: Path, around: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the files of a tree, where links lead too; a folder that holds itself ends there."""
    if path.is_file():
        yield path
    elif path.is_dir() and (real := os.path.realpath(path)) not in around:
        for item in path.iterdir():
            if not item.name.startswith("."):
                yield from _files(item, around | {real})
