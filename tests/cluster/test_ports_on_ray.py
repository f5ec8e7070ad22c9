"""A run without a cluster listens on loopback alone, and wants the token even there."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.config import SearchConfig
from tests.helpers import NEW_SHELL
from tests.helpers.hosts import hosts, why_not
from tests.helpers.ports import REFUSED, Port, listening
from tests.helpers.small_training import WORKER, config_of, prepare, wait_for, words_of

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards."""
    folder = tmp_path_factory.mktemp("ports")
    prepare(folder)
    return folder


@contextmanager
def _started(words: list[str]) -> Iterator[psutil.Popen]:
    """Have a command and its processes inside the ``with``."""
    with psutil.Popen(words, env=NEW_SHELL, stderr=subprocess.DEVNULL) as command:
        try:
            yield command
        finally:
            for process in [*command.children(recursive=True), command]:
                process.kill()


@contextmanager
def _machine() -> Iterator[list[str]]:
    """Have a machine whose name is not that of its loopback, if there can be one.

    The words before a command run it there.
    """
    if why_not() is not None:
        yield []
        return
    with hosts(1) as made:
        yield ["ip", "netns", "exec", made.name(0)]


@pytest.mark.parametrize("job", ["train", "tune"])
def test_a_local_run_listens_on_loopback_alone(root: Path, job: str) -> None:
    config = config_of(root, f"{job}{secrets.token_hex(2)}", steps_per_epoch=100_000)
    # How many ports each has at least.
    wanted = {"/gcs_server ": 1, "/raylet ": 2, "DashboardAgent": 1}
    if job == "train":
        wanted[WORKER] = 5  # of two: each Ray's and gloo's, and the store at which they meet
    else:
        space = root / "space.yaml"
        space.write_text("options: {lr: [0.01, 0.001]}\n")
        search = SearchConfig(space=str(space), num_trials=2)
        config = config.model_copy(update={"search": search})
    seen: set[Port] = set()
    words = [sys.executable, "-m", f"jobs.{job}", *words_of(config)]
    with _machine() as there, _started([*there, *words]) as command:

        def look() -> set[Port]:
            below = [process.pid for process in command.children(recursive=True)]
            return set(listening([command.pid, *below]))

        def complete() -> bool:
            assert command.poll() is None
            time.sleep(0.3)
            seen.update(look())
            ports = {
                name: {port.number for port in seen if name in port.command} for name in wanted
            }
            return all(len(ports[name]) >= count for name, count in wanted.items())

        wait_for(complete, "so many ports")
        time.sleep(5)  # the agents' last ports
        now = look()
        if job == "tune":  # torch's ports, which a training of several processes has, want none
            ask = [sys.executable, "-m", "tests.helpers.ports", "127.0.0.1"]
            numbers = sorted({str(port.number) for port in now})
            asked = subprocess.run(
                [*there, *ask, *numbers], stdout=subprocess.PIPE, text=True, check=True
            )
            answers = json.loads(asked.stdout).items()
            assert {port: said for port, said in answers if said not in REFUSED} == {}
        seen |= now
    assert [port for port in seen if not port.is_loopback] == []
