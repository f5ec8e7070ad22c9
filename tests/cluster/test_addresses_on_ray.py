"""An address at which no cluster lets us in is told within 20 s, in one line."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lasaft.errors import ConfigError
from pipeline.cluster import address
from pipeline.cluster.address import require_cluster
from tests.helpers import NEW_SHELL
from tests.helpers.own_cluster import OwnCluster, own_cluster

_LIMIT_SECONDS = 20.0
_ALLOWED = "HOST:PORT of a running cluster, 'auto', or 'local' for a cluster on this machine"
_TOKEN = "RAY_AUTH_MODE=token and the cluster's token (RAY_AUTH_TOKEN or ~/.ray/auth_token)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnCluster]:
    with own_cluster() as made:
        yield made


def _start(
    folder: Path, *more: str, inside: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    """Start a command; return it when it is about to connect."""
    run = ["-m", "jobs.run", "--preset", "demo", "--output_dir", str(folder / secrets.token_hex(4))]
    words = [*inside, sys.executable, *run, *more]
    command = subprocess.Popen(
        words, env={**NEW_SHELL, **environment}, stderr=subprocess.PIPE, text=True
    )
    assert command.stderr is not None
    assert command.stderr.readline().startswith(f"run: in {folder}")
    assert command.stderr.readline() == "[1/5] songs ...\n"
    return command


def _refused(folder: Path, *more: str, **settings: Any) -> str:
    """Give a command; return all that it says in the end, without the words that all say."""
    command = _start(folder, *more, **settings)
    start = time.monotonic()
    errors = command.communicate(timeout=120)[1]
    # The machine may have other work: how long Python itself takes to start is left out.
    assert time.monotonic() - start < _LIMIT_SECONDS - 5
    assert command.returncode == 2, errors
    assert errors.startswith("run: error: address: got ")
    return errors.removeprefix("run: error: address: got ").removesuffix("\n")


@contextmanager
def _nothing() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    yield port


@contextmanager
def _deaf() -> Iterator[int]:
    with socket.create_server(("", 0)) as listening:
        yield listening.getsockname()[1]


@contextmanager
def _swallowing() -> Iterator[int]:
    """A port whose queue is full: the system drops the packets of whoever comes next."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("", 0), backlog=0))
        port = listening.getsockname()[1]
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield port


@contextmanager
def _web() -> Iterator[int]:
    with ThreadingHTTPServer(("", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("place", "found"),
    [
        (_nothing, "no Ray cluster answers there (Connection refused)"),
        (_swallowing, "no Ray cluster answers there (timed out)"),
        (_deaf, "what listens there says nothing for 10 s"),
        (_web, "what answers there is no head of a Ray cluster"),
    ],
)
def test_what_is_no_cluster_is_told(tmp_path: Path, place: Any, found: str) -> None:
    with place() as port:
        line = _refused(tmp_path, "--address", f"127.0.0.1:{port}")
    assert line == f"'127.0.0.1:{port}', {found}, allowed: {_ALLOWED}"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", "is no HOST:PORT"),
        ("ray://127.0.0.1:10001", "a job runs on a node of the cluster, without Ray Client"),
        ("127.0.0.1", "is no HOST:PORT"),
        ("127.0.0.1:99999", "is no HOST:PORT"),
        ("nowhere.invalid:6379", "no Ray cluster answers there (Name or service not known)"),
        (
            "a..b:6379",
            "no Ray cluster answers there (encoding with 'idna' codec failed "
            "(UnicodeError: label empty or too long))",
        ),
    ],
)
def test_what_is_no_address_is_told(given: str, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_cluster(given)
    assert str(caught.value) == f"address: got {given!r}, {found}, allowed: {_ALLOWED}"


def test_ctrl_c_ends_the_search_for_a_cluster(tmp_path: Path) -> None:
    with _deaf() as port:
        command = _start(tmp_path, "--address", f"127.0.0.1:{port}")
        time.sleep(4)
        command.send_signal(signal.SIGINT)
        start = time.monotonic()
        errors = command.communicate(timeout=60)[1]
        assert time.monotonic() - start < 5
    assert command.returncode == 130
    assert errors == "stopping ...\ninterrupted; the same command goes on from here\n"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 32}, "the cluster wants a token, and the one here is wrong"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "missing"},
         "RAY_AUTH_MODE is token, and there is no token here"),
        ({"RAY_AUTH_MODE": "disabled"}, "the cluster wants a token, and none is shown to it"),
    ],
    ids=["wrong", "missing", "not shown"],
)  # fmt: skip
@pytest.mark.parametrize("way", ["address", "environment", "auto"])
def test_a_wrong_token_is_told_as_a_wrong_token(
    tmp_path: Path, cluster: OwnCluster, settings: dict[str, str], found: str, way: str
) -> None:
    named = cluster.address
    words, more, got = {
        "address": (["--address", named], {}, repr(named)),
        "environment": ([], {"RAY_ADDRESS": named}, f"{named!r} of RAY_ADDRESS"),
        "auto": (["--address", "auto"], {}, f"'auto' ({named})"),
    }[way]
    line = _refused(tmp_path, *words, **cluster.settings | settings | more)
    assert line == f"{got}, {found}, allowed: {_TOKEN}"


def test_a_machine_that_is_no_node_of_the_cluster_is_told(
    tmp_path: Path, cluster: OwnCluster
) -> None:
    """Here it is one that sees neither the cluster's processes nor its files."""
    alone = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c"]
    tried = subprocess.run([*alone, "mount -t tmpfs none /mnt"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip("needs root, for namespaces")
    script = f'mount -t tmpfs none {cluster.folder} && exec "$@"'
    line = _refused(
        tmp_path, "--address", cluster.address, inside=[*alone, script, "sh"],
        **cluster.settings,
    )  # fmt: skip
    assert line == (
        f"'{cluster.address}', this machine is no node of the cluster, allowed: "
        "a command on one of its nodes (ray job submit sends it there)"
    )


def test_a_head_that_answers_late_is_waited_for(
    cluster: OwnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.settings.items():
        monkeypatch.setenv(name, value)
    cluster.signal_head(signal.SIGSTOP)
    threading.Timer(5, cluster.signal_head, [signal.SIGCONT]).start()
    start = time.monotonic()
    require_cluster(cluster.address)
    assert time.monotonic() - start > 4
    start = time.monotonic()
    require_cluster(cluster.address)
    assert time.monotonic() - start < 1


def test_a_head_that_is_too_busy_for_the_question_is_not_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It answers what gRPC answers without it; here by a server that answers nothing else."""
    import grpc

    class Busy(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                if handler_call_details.method != address._HEALTH_CALL:
                    done.wait()
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    done = threading.Event()
    monkeypatch.setattr(address, "_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(address, "_clusters_here", lambda: {"one"})
    server = grpc.server(ThreadPoolExecutor(4), handlers=[Busy()])
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    require_cluster(f"127.0.0.1:{port}")
    done.set()
    server.stop(None)


def test_a_cluster_whose_head_is_dead_is_told_while_its_nodes_live(tmp_path: Path) -> None:
    with own_cluster() as cluster:
        cluster.signal_head(signal.SIGKILL)
        named, settings = cluster.address, cluster.settings
        ended = f"no Ray cluster answers there (Connection refused), allowed: {_ALLOWED}"
        line = _refused(tmp_path, "--address", named, **settings)
        assert line == f"'{named}', {ended}"
        line = _refused(tmp_path, "--address", "auto", **settings)
        assert line == f"'auto' ({named}), {ended}"
        for words in ([], ["--address", "auto"]):
            line = _refused(tmp_path, *words, **settings, RAY_ADDRESS=named)
            assert line == f"'{named}' of RAY_ADDRESS, {ended}"
