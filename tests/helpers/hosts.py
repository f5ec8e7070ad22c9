"""Several hosts on this machine, as network namespaces with own addresses, and Ray on them."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.helpers import NEW_SHELL, ROOT

_SCRIPTS = Path(sys.executable).parent
_PORT = 6399
# Ray's Prometheus ports want no token: these settings close them.
NO_METRICS = {
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}


# A host that shares no folder sees its own ones in the usual places, and none of the others'
# processes: Ray looks through them for the node that a command is on. Where this code or Python
# lies in one of the places, that one is shared.
_USED = (Path(__file__).resolve(), Path(sys.prefix), Path(sys.base_prefix))
_PLACES = [
    place
    for place in ("/home", "/root", "/data", "/tmp")
    if Path(place).is_dir() and not any(path.is_relative_to(place) for path in _USED)
]
_ALONE = f"""
mount -t proc proc /proc || exit 1
for place in {" ".join(_PLACES)}; do
    mkdir -p $0$place && mount --bind $0$place $place || exit 1
done
echo ready
exec sleep infinity
"""


def why_not() -> str | None:
    """Return why this machine cannot have hosts, or None if it can."""
    if shutil.which("ip") is None:
        return "needs iproute2 (ip)"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    name = f"try{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@dataclass
class Hosts:
    """Hosts ``0 .. count - 1`` on one bridge; host 0 holds the head of a Ray cluster.

    Args:
        count: how many hosts.
        folder: for Ray's own files; its path must be short (socket names).
        shared: an empty folder that stands for the storage of all hosts.
        token: what Ray's processes show each other.
        own: where the hosts' own folders are, if they share none; see :data:`_ALONE`.
        variables: more of the environment on all hosts.
    """

    count: int
    folder: Path
    shared: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    # Two of these may exist on one machine.
    number: int = field(default_factory=lambda: os.getpid() % 200 + 20)
    own: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)
    _first: dict[int, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The address of the Ray cluster."""
        return f"{self.ip(0)}:{_PORT}"

    def ip(self, host: int) -> str:
        """Return the address of a host."""
        return f"10.77.{self.number}.{10 + host}"

    def name(self, host: int) -> str:
        """Return the name of a host's namespace."""
        return f"lasaft{self.number}-{host}"

    @property
    def _hub(self) -> str:
        return f"lasaft{self.number}-hub"

    def build(self) -> None:
        """Make the hosts and the bridge between them."""
        _ip("netns", "add", self._hub)
        _ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._hub, "link", "set", "bridge", "up")
        for host in range(self.count):
            name, port = self.name(host), f"port{host}"
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            veth = ["link", "add", "eth0", "netns", name, "type", "veth"]
            _ip(*veth, "peer", "name", port, "netns", self._hub)
            _ip("-n", self._hub, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{self.ip(host)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            etc = Path("/etc/netns") / name
            etc.mkdir(parents=True, exist_ok=True)
            lines = ("127.0.0.1 localhost", f"{self.ip(host)} {socket.gethostname()}")
            (etc / "hosts").write_text("\n".join(lines) + "\n")

    def close(self) -> None:
        """End everything that runs on the hosts, and the hosts."""
        for host in range(self.count):
            self.kill(host)
            subprocess.run(["ip", "netns", "delete", self.name(host)], check=False)
            shutil.rmtree(Path("/etc/netns") / self.name(host), ignore_errors=True)
        subprocess.run(["ip", "netns", "delete", self._hub], check=False)

    def environment(self) -> dict[str, str]:
        """Return the environment of the processes on a host."""
        return {
            **NEW_SHELL,
            "PATH": f"{_SCRIPTS}:{NEW_SHELL['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0",
            **NO_METRICS,
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            **({} if self.own is None else {"HOME": "/home"}),
            **self.variables,
        }

    def _on(self, host: int, command: Sequence[str]) -> list[str]:
        """Return the words that run a command on a host."""
        there = ["ip", "netns", "exec", self.name(host)]
        if self.own is None:
            return [*there, *command]
        first = self._first.get(host)
        if first is None or first.poll() is not None:
            alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
            first = subprocess.Popen(
                [*there, *alone, "bash", "-c", _ALONE, str(self.own / str(host))],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert first.stdout is not None
            with first.stdout as said:
                assert said.readline() == "ready\n"
            self._first[host] = first
        (inside,) = psutil.Process(first.pid).children()
        words = ["nsenter", f"--target={inside.pid}", "--net", "--mount", "--pid"]
        return [*words, f"--wd={ROOT}", *command]

    def start_ray(self, host: int, *more: str, **environment: str) -> None:
        """Start Ray on a host: the head without a CPU on host 0, else a node of one CPU.

        ``more`` words of the command and another ``environment`` may say otherwise. In place of the
        folders that EMPTY names the host sees empty ones.
        """
        where = ["--head", f"--port={_PORT}"] if host == 0 else [f"--address={self.head}"]
        # The folder of a worker's session is the head's own name for it: of hosts that share their
        # folders each needs its own; of others a command on any of them looks for that very name.
        folder = self.folder / str(host) if self.own is None else self.folder
        folder.mkdir(parents=True, exist_ok=True)
        place = [f"--node-ip-address={self.ip(host)}", f"--temp-dir={folder}"]
        size = [f"--num-cpus={min(host, 1)}", "--object-store-memory=200000000"]
        quiet = ["--include-log-monitor=false", "--disable-usage-stats"]
        others = [f"{name}={value}" for name, value in environment.items()]
        script = 'for folder in $EMPTY; do mount -t tmpfs none $folder; done; exec ray start "$@"'
        words = [*where, *place, *size, *quiet, *more]
        command = ["env", *others, "bash", "-c", script, "bash", *words]
        done = self.run(host, *command)
        if done.returncode != 0:
            # On a machine with far too much work, Ray's own deadlines can pass.
            self.kill(host)
            done = self.run(host, *command)
        assert done.returncode == 0, done.stdout + done.stderr

    def start_all(self, **of_the_head: str) -> None:
        """Start Ray on every host; the head's environment may say otherwise."""
        self.start_ray(0, **of_the_head)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start_ray, range(1, self.count)))

    def run(
        self, host: int, *command: str, seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host until it ends."""
        return subprocess.run(
            self._on(host, command),
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )

    def start(self, host: int, *command: str) -> subprocess.Popen[str]:
        """Start a command on a host, in a process group of its own."""
        return subprocess.Popen(
            self._on(host, command),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def processes(self, host: int) -> list[int]:
        """Return the ids of all processes on a host."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name(host)], capture_output=True, text=True, check=False
        )
        return [int(word) for word in listed.stdout.split()]

    def commands(self, host: int) -> dict[int, str]:
        """Return the command lines of all processes on a host, words parted by NUL, by id."""
        found = {}
        for process in self.processes(host):
            with suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
                found[process] = Path(f"/proc/{process}/cmdline").read_bytes().decode()
        return found

    def busiest(self) -> int:
        """Return the host, not the head's, on which a worker process of Ray uses the CPU most."""

        def seconds(host: int) -> float:
            used = 0.0
            for process, command in self.commands(host).items():
                if command.startswith("ray::"):
                    with suppress(psutil.NoSuchProcess):  # it has just ended
                        used += psutil.Process(process).cpu_times().user
            return used

        return max(range(1, self.count), key=seconds)

    def node_id(self, host: int) -> str:
        """Return Ray's name for a host, from the command line of its raylet."""
        for command in self.commands(host).values():
            words = command.split("\0")
            found = [word for word in words if word.startswith("--node_id=")]
            if found and words[0].endswith("/raylet"):
                return found[0].removeprefix("--node_id=")
        raise AssertionError(f"no raylet runs on {self.name(host)}")

    def kill(self, host: int) -> None:
        """End a host as a power cut does: every process on it at once."""
        for _ in range(50):
            alive = self.processes(host)
            for process in alive:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if not alive:
                if host in self._first:
                    self._first[host].wait()
                return
            time.sleep(0.1)
        raise AssertionError(f"processes of {self.name(host)} do not end: {self.processes(host)}")

    def link(self, host: int, state: str) -> None:
        """Cut a host off (``down``) or join it again (``up``)."""
        _ip("-n", self._hub, "link", "set", f"port{host}", state)


@contextmanager
def hosts(count: int, *, apart: bool = False) -> Iterator[Hosts]:
    """Have ``count`` hosts inside the ``with``; nothing is left of them after it.

    Args:
        apart: they share no folder but that of this code and of Python.
    """
    place = "/var/tmp" if apart else "/tmp"
    with tempfile.TemporaryDirectory(prefix="lh", dir=place, ignore_cleanup_errors=True) as name:
        shared = Path(name) / "shared"
        shared.mkdir()
        made = Hosts(count, Path(name) / "ray", shared)
        if apart:
            made = Hosts(count, Path("/tmp/lh/ray"), shared, own=Path(name) / "own")
        try:
            made.build()
            yield made
        finally:
            made.close()


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"
