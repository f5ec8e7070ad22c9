"""An object store as a file system of pyarrow's that waits for it, for who knows only those."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyarrow import BufferReader, NativeFile, PythonFile
from pyarrow.fs import (
    FileInfo,
    FileSelector,
    FileSystem,
    FileSystemHandler,
    FileType,
    PyFileSystem,
)

from pipeline.cluster.store import RemoteFolder, patiently

Result = TypeVar("Result")


def patient_place(folder: RemoteFolder, name: str, only: str = "") -> tuple[FileSystem, str]:
    """Return a file system, and the path in it, of a file or folder below ``folder``.

    All that is asked of it is tried again, as :func:`patiently` does. A file is read and written
    as a whole, in memory: this is for small ones.

    Args:
        only: the one file that was just written to the folder ``name``: a store may list it late.
    """
    system, path = folder.place(name)
    return PyFileSystem(_Patient(system, f"{path}/{only}" if only else "")), path


@dataclass(frozen=True)
class _Patient(FileSystemHandler):
    system: FileSystem
    only: str = field(default="", compare=False)  # Ray Train compares its own with those of states

    def get_type_name(self) -> str:
        return self.system.type_name

    def normalize_path(self, path: str) -> str:
        return self.system.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        found = _ask(", ".join(paths), self.system.get_file_info, paths)
        return [self._of_only(info) if info.type == FileType.NotFound else info for info in found]

    def _of_only(self, info: FileInfo) -> FileInfo:
        """Return what a path is that is not there, or not listed yet."""
        if not self.only.startswith(f"{info.path}/"):
            return info
        there = _ask(self.only, self.system.get_file_info, self.only).is_file
        return FileInfo(info.path, FileType.Directory) if there else info

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        return _ask(selector.base_dir, self.system.get_file_info, selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        _ask(path, self.system.create_dir, path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        try:
            _ask(path, self.system.delete_dir, path)
        except FileNotFoundError:
            if self._of_only(FileInfo(path)).type == FileType.NotFound:
                raise
            self.delete_file(self.only)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        _ask(path, self.system.delete_dir_contents, path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        _ask("", self.system.delete_dir_contents, "", accept_root_dir=True)

    def delete_file(self, path: str) -> None:
        _ask(path, self.system.delete_file, path)

    def move(self, src: str, dest: str) -> None:
        _ask(src, self.system.move, src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        _ask(src, self.system.copy_file, src, dest)

    def open_input_stream(self, path: str) -> NativeFile:
        def read() -> bytes:
            with self.system.open_input_stream(path) as file:
                return file.read()

        return BufferReader(_ask(path, read))

    def open_input_file(self, path: str) -> NativeFile:
        return self.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: dict[str, str] | None) -> NativeFile:
        return PythonFile(_WrittenAtOnce(self.system, path, metadata), mode="w")

    def open_append_stream(self, path: str, metadata: dict[str, str] | None) -> NativeFile:
        raise NotImplementedError("object stores do not append")


class _WrittenAtOnce(io.BytesIO):
    def __init__(self, system: FileSystem, path: str, metadata: dict[str, str] | None) -> None:
        super().__init__()
        self._system, self._path, self._metadata = system, path, metadata

    def close(self) -> None:
        if self.closed:
            return
        data = self.getvalue()
        super().close()

        def write() -> None:
            with self._system.open_output_stream(self._path, metadata=self._metadata) as file:
                file.write(data)

        _ask(self._path, write)


def _ask(name: str, action: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """Return what ``action`` does, with what is missing told as a file system tells it."""

    def ask() -> Result | FileNotFoundError:
        try:
            return action(*args, **options)
        except FileNotFoundError as error:
            return error

    found = patiently(name, ask)
    if isinstance(found, FileNotFoundError):
        raise found
    return found
