"""The address of a Ray cluster: which one is meant, and whether it lets this machine in.

Ray itself would try for minutes, and write a line each second.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from lasaft.errors import ConfigError, Problem
from pipeline.config import ClusterConfig
from pipeline.config.addresses import shown

ALLOWED = "HOST:PORT of a running cluster, 'auto', or 'local' for a cluster on this machine"
_LET_IN = "RAY_AUTH_MODE=token and the cluster's token (RAY_AUTH_TOKEN or ~/.ray/auth_token)"
_FROM_INSIDE = "a command on one of its nodes (ray job submit sends it there)"
# The first call of every driver of Ray, and one of gRPC itself, which a busy head answers too.
_FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_HEALTH_CALL = "/grpc.health.v1.Health/Check"
_PATIENCE_SECONDS = 10.0
_HEALTH_SECONDS = 2.0
_JOIN_SECONDS = 8.0  # Ray itself tries for 10 s, and then ends its process


def named_address(config: ClusterConfig) -> str | None:
    """Return what the option or ``RAY_ADDRESS`` names; None for a cluster on this machine."""
    named = config.address
    if named in (None, "auto"):
        named = os.environ.get("RAY_ADDRESS") or named
    return None if named == "local" else named


def address_problems(config: ClusterConfig) -> Iterator[Problem]:
    """Yield what is wrong with the address of a cluster by its form."""
    named = named_address(config)
    if named not in (None, "auto") and (reason := _malformed(named)):
        yield _problem(named, named, reason)


def _problem(named: str, address: str | None, reason: str, allowed: str = ALLOWED) -> Problem:
    origin = " of RAY_ADDRESS" if named == os.environ.get("RAY_ADDRESS") else ""
    origin += f" ({address})" if named == "auto" and address else ""
    # Nothing says where a password would end: before the @.
    text = shown(named).rpartition("@")[2]
    return Problem("address", f"{text!r}{origin}", allowed, reason=reason)


def require_cluster(named: str) -> None:
    """Refuse an address at which Ray would not let this machine in, within 20 s.

    Raises:
        ConfigError: says what was found there.
    """
    searched = named == "auto"
    address = _of_this_machine() if searched else named
    reason, allowed = _malformed(address), ALLOWED
    if reason is None and address is not None:
        reason, allowed = _refusal(address, _token(searched=searched))
    if reason is not None:
        raise ConfigError(_problem(named, address, reason, allowed))


def _malformed(address: str | None) -> str | None:
    """Return what is wrong with an address by its form, or with there being none."""
    if address is None:
        return f"{len(_clusters_here()) or 'no'} Ray clusters run on this machine"
    if "://" in address:
        return "a job runs on a node of the cluster, without Ray Client"
    host, _, port = address.rpartition(":")
    well = host and "@" not in host and port.isdecimal() and 0 < int(port) < 1 << 16
    return None if well else "is no HOST:PORT"


def _refusal(address: str, token: str | None) -> tuple[str | None, str]:
    """Return why a cluster does not let this machine in (None: it does), and what is allowed."""
    if token == "":
        return "RAY_AUTH_MODE is token, and there is no token here", _LET_IN
    try:
        answer = _answer(address, token)
    except (OSError, UnicodeError) as error:  # UnicodeError: it is no name of a host
        said = getattr(error, "strerror", None) or error
        return f"no Ray cluster answers there ({said})", ALLOWED
    if answer == "UNAUTHENTICATED":
        found = "none is shown to it" if token is None else "the one here is wrong"
        return f"the cluster wants a token, and {found}", _LET_IN
    if answer == "DEADLINE_EXCEEDED":
        return f"what listens there says nothing for {_PATIENCE_SECONDS:g} s", ALLOWED
    if answer in ("UNAVAILABLE", "UNIMPLEMENTED"):
        return "what answers there is no head of a Ray cluster", ALLOWED
    here = _clusters_here() or _joins(address)
    return None if here else "this machine is no node of the cluster", _FROM_INSIDE


def _answer(address: str, token: str | None) -> str:
    """Return what the head of a cluster answers to a driver, as the name of a gRPC status.

    Raises:
        OSError, UnicodeError: there is no way to ask.
    """
    import grpc
    import ray

    host, _, port = address.rpartition(":")
    if host in ("localhost", "127.0.0.1", "[::1]"):
        host = ray.util.get_node_ip_address()  # as Ray itself takes it
    end = time.monotonic() + _PATIENCE_SECONDS
    socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_SECONDS).close()
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:

        def ask(call: str, seconds: float) -> str:
            return channel.unary_unary(call).future(b"", seconds, metadata).code().name

        status = ask(_FIRST_CALL, end - time.monotonic())
        if status in ("DEADLINE_EXCEEDED", "UNIMPLEMENTED"):
            status = ask(_HEALTH_CALL, _HEALTH_SECONDS)
    return status


def _token(*, searched: bool) -> str | None:
    """Return the token that Ray shows; None where it shows none, empty where it lacks one."""
    if os.environ.get("RAY_AUTH_MODE", "token" if searched else "").lower() != "token":
        return None
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    token = os.environ.get("RAY_AUTH_TOKEN") or (file.is_file() and file.read_text().strip())
    return token or ("" if "RAY_AUTH_MODE" in os.environ else None)


def _of_this_machine() -> str | None:
    """Return the address that Ray takes for 'auto': the one cluster here, or the latest."""
    here = _clusters_here()
    if len(here) == 1:
        return here.pop()
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    latest = Path(folder, "ray", "ray_current_cluster")
    return latest.read_text().strip() if latest.is_file() else None


def _clusters_here() -> set[str]:
    """Return the addresses of the clusters of which a node runs on this machine."""
    flag, found = "--gcs-address=", set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].endswith("/raylet"):
            found |= {word.removeprefix(flag) for word in words if word.startswith(flag)}
    return found


def _joins(address: str) -> bool:
    """Return whether Ray lets a process in; where it does not, it ends that process."""
    program = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"
    command = [sys.executable, "-c", program, address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_JOIN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
