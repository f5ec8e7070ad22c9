"""What listens on a machine, and what a stranger is answered there.

``python -m tests.helpers.ports HOST PORT...`` asks each port of a host without a token, and prints
the answers as JSON.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

import grpc

_LISTENS, _BOUND = "0A", "07"  # what Linux calls such a socket of TCP, and of UDP

# A call of each service of Ray.
_CALLS = (
    "NodeInfoGcsService/GetClusterId",
    "NodeManagerService/GetSystemConfig",
    "ObjectManagerService/Pull",
    "CoreWorkerService/NumPendingTasks",
    "ReporterService/GetTraceback",
    "RayletDriver/ClusterInfo",
)


class Port(NamedTuple):
    """A socket that listens, and the command line of its process."""

    ip: IPv4Address | IPv6Address
    number: int
    command: str

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of the same machine get there."""
        mapped = self.ip.ipv4_mapped if isinstance(self.ip, IPv6Address) else None
        return (mapped or self.ip).is_loopback


def listening(processes: Iterable[int]) -> Iterator[Port]:
    """Yield the sockets of some processes that take what others send, in any namespace."""
    for process in processes:
        place = Path(f"/proc/{process}")
        try:
            sockets = {str(fd.readlink()) for fd in (place / "fd").iterdir()}
            command = (place / "cmdline").read_text().replace("\0", " ")
            tables = [(place / "net" / name).read_text() for name in ("tcp", "tcp6", "udp", "udp6")]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        for line in [line for table in tables for line in table.splitlines()[1:]]:
            _, local, _, state, *_ = words = line.split()
            if state in (_LISTENS, _BOUND) and f"socket:[{words[9]}]" in sockets:
                ip, number = local.split(":")
                swapped = struct.unpack(f"<{len(ip) // 8}I", bytes.fromhex(ip))
                packed = struct.pack(f">{len(swapped)}I", *swapped)
                yield Port(ip_address(packed), int(number, 16), command)


def answer(host: str, port: int) -> list[str]:
    """Return what is said to a stranger: a status of HTTP, or of each service of Ray."""
    try:
        asking = socket.create_connection((host, port), timeout=20)
    except ConnectionRefusedError:
        return []  # its process has ended
    with asking:
        asking.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            said = asking.recv(12)
        except (TimeoutError, ConnectionError):
            said = b""
    if said.startswith(b"HTTP/1."):
        return [said[9:12].decode()]
    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        asked = [channel.unary_unary(f"/ray.rpc.{call}").future(b"", 20) for call in _CALLS]
        return sorted(one.code().name for one in asked)


REFUSED = ([], ["401"], ["UNAUTHENTICATED", *["UNIMPLEMENTED"] * (len(_CALLS) - 1)])


if __name__ == "__main__":
    print(json.dumps({port: answer(sys.argv[1], int(port)) for port in sys.argv[2:]}))
