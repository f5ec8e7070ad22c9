"""An S3-like server on this machine, with shards in it, and a way to it that drops connections."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

from pyarrow import fs

_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def object_store() -> Iterator[int]:
    """Run a server with an empty bucket called ``bucket``; yield its port."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with mock.patch.dict(os.environ, _CREDENTIALS):
        server.start()
        try:
            _, port = server.get_host_and_port()
            system, _ = fs.FileSystem.from_uri(address("", port) + "&allow_bucket_creation=true")
            system.create_dir("bucket")
            yield port
        finally:
            server.stop()


def address(folder: str, port: int) -> str:
    """Return the address of a folder in the server's bucket."""
    return f"s3://bucket/{folder}?endpoint_override=127.0.0.1:{port}&scheme=http"


def put_folder(folder: Path, place: str) -> None:
    """Copy all files below ``folder`` to an address."""
    system, path = fs.FileSystem.from_uri(place)
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            with system.open_output_stream(f"{path}/{file.relative_to(folder)}") as out:
                out.write(file.read_bytes())


def put_object(place: str, name: str, data: bytes) -> None:
    """Write one object below an address."""
    system, path = fs.FileSystem.from_uri(place)
    with system.open_output_stream(f"{path}/{name}") as out:
        out.write(data)


def delete_object(place: str, name: str) -> None:
    """Delete one object below an address."""
    system, path = fs.FileSystem.from_uri(place)
    system.delete_file(f"{path}/{name}")


def object_names(place: str) -> set[str]:
    """Return the names of all objects below an address."""
    system, path = fs.FileSystem.from_uri(place)
    found = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{path}/") for info in found if info.is_file}


class DroppingWay:
    """A port that leads to another, and cuts its first connections in the middle of the answer.

    Args:
        port: where it leads.
        drops: how many connections are cut.
        after_bytes: of the answer.
    """

    def __init__(self, port: int, *, drops: int, after_bytes: int) -> None:
        self._target, self.drops, self._after = port, drops, after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for way in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=way, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answer: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                if answer and passed > self._after and self._cuts():
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _cuts(self) -> bool:
        with self._lock:
            self.drops -= 1
            return self.drops >= 0
