"""An S3-like server on this machine, with shards in it, and a way to it that drops connections."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any
from unittest import mock

from pyarrow import fs

from tests.helpers.hosts import Hosts

_PORT = 5000
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


def address(folder: str, port: int, ip: str = "127.0.0.1") -> str:
    """Return the address of a folder in the server's bucket."""
    return f"s3://bucket/{folder}?endpoint_override={ip}:{port}&scheme=http"


@contextmanager
def late_listings(is_late: Callable[[float], bool]) -> Iterator[None]:
    """Let this process's servers leave new objects out of lists; by name they are there.

    Args:
        is_late: whether an object is left out that was first written so many seconds ago.
    """
    from moto.s3.models import S3Backend

    put, listed = S3Backend.put_object, S3Backend.list_objects
    first: dict[tuple[str, str], float] = {}

    def put_object(backend: Any, bucket: str, name: str, *values: Any, **options: Any) -> Any:
        first.setdefault((bucket, name), time.monotonic())
        return put(backend, bucket, name, *values, **options)

    def list_objects(backend: Any, bucket: Any, *values: Any, **options: Any) -> Any:
        now, shown = time.monotonic(), copy(bucket)
        shown.keys = {
            name: key
            for name, key in bucket.keys.items()
            if not is_late(now - first.get((bucket.name, name), -math.inf))
        }
        return listed(backend, shown, *values, **options)

    with mock.patch.multiple(S3Backend, put_object=put_object, list_objects=list_objects):
        yield


@contextmanager
def store_on(hosts: Hosts, host: int) -> Iterator[str]:
    """Run a server with an empty bucket on a host; yield the address of a run in it."""
    place = address("run", _PORT, hosts.ip(host))
    hosts.variables |= _CREDENTIALS
    # Nobody reads what it prints.
    words = ["sh", "-c", 'exec moto_server "$@" >/dev/null 2>&1', "sh"]
    server = hosts.start(host, *words, "-H", hosts.ip(host), "-p", str(_PORT))
    make = "import sys; from pyarrow import fs; "
    make += "fs.FileSystem.from_uri(sys.argv[1])[0].create_dir('bucket')"
    command = [sys.executable, "-c", make, f"{place}&allow_bucket_creation=true"]
    try:
        end = time.monotonic() + 60
        while (made := hosts.run(host, *command)).returncode != 0:
            assert time.monotonic() < end, made.stderr
        yield place
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


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
    return set(object_sizes(place))


def object_sizes(place: str) -> dict[str, int]:
    """Return the lengths of all objects below an address by their names."""
    system, path = fs.FileSystem.from_uri(place)
    found = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{path}/"): info.size for info in found if info.is_file}


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
