"""A run in a bucket on hosts that share no folder, while hosts and commands die in each stage.

    python -m benchmarks.apart [--stages train evaluate] [--what host]

The hosts are network namespaces, each with folders of its own (root and iproute2 are needed); an
S3-like server on one of them holds the run. ``jobs.doctor`` looks at them; then ``jobs.run`` goes
from songs over a search and a training of two processes to the report three times: here in a
folder and undisturbed; there while a host with work loses its power in each stage and comes back;
and there while the command is killed in each stage and given again on another host. All have to end
with the same scores and weights.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.measure import Table
from benchmarks.store_faults import STAGES, model_hash
from tests.helpers import ROOT
from tests.helpers.hosts import Hosts, hosts, why_not
from tests.helpers.object_store import store_on

_SETTINGS = [
    "--preset", "demo", "--synthetic_train", "3", "--synthetic_valid", "1", "--synthetic_test", "2",
    "--synthetic_seconds", "6", "--steps_per_epoch", "40", "--max_epochs", "3", "--num_frame", "16",
    "--n_blocks", "3", "--internal_channels", "4", "--n_internal_layers", "1", "--num_tdfs", "2",
    "--dk", "4", "--world_size", "2", "--batch_size", "4", "--json",
]  # fmt: skip
_SEARCH = ["--space", "small", "--num_trials", "2", "--seeds", "1", "--top_settings", "1"]
_ALL = (*STAGES[:2], "search", *STAGES[2:])
# Hosts that may die: 0 has the head, the last one the store.
_MORTAL = (1, 2)


def stages_of(command: subprocess.Popen[str], said: list[str]) -> Iterator[str]:
    """Yield each stage of a run when it begins to work; ``said`` receives what it tells."""
    assert command.stderr is not None
    stage = ""
    for line in command.stderr:
        said.append(line)
        if line.startswith("["):
            stage = line.split()[1] if line.endswith(" ...\n") else ""
            if stage in ("songs", "preprocess", "evaluate", "report"):
                yield stage
        elif stage in ("search", "train") and line.startswith(("search: ", "training: ")):
            yield stage
            stage = ""


def kill_one_with_work(cloud: Hosts, pool: ThreadPoolExecutor) -> tuple[int, Future[None]]:
    """End a host on which a task or actor is at work, and start it anew in the background."""
    end = time.monotonic() + 2
    host = _MORTAL[0]
    while time.monotonic() < end:
        names = {one: cloud.commands(one).values() for one in _MORTAL}
        busy = [
            one
            for one, commands in names.items()
            if any(name.startswith("ray::") and "ray::IDLE" not in name for name in commands)
        ]
        if busy:
            host = busy[-1]
            break
        time.sleep(0.05)
    cloud.kill(host)
    return host, pool.submit(cloud.start_ray, host)


def disturb(
    cloud: Hosts, words: list[str], stages: set[str], kind: str, table: Table
) -> tuple[dict[str, Any], str]:
    """Do a run while ``kind`` ("host" or "command") dies in ``stages``; return result and words."""
    left, said, at = set(stages), list[str](), 0
    with ThreadPoolExecutor() as pool:
        while True:
            command = cloud.start(at, *words)
            assert command.stdout is not None
            try:
                for stage in stages_of(command, said):
                    if stage not in left:
                        continue
                    left.remove(stage)
                    if kind == "command":
                        os.killpg(command.pid, signal.SIGKILL)
                        at = (at + 1) % cloud.count
                        table.row(f"command killed in {stage}, next on host {at}", "", "")
                    else:
                        host, back = kill_one_with_work(cloud, pool)
                        table.row(f"host {host} killed in {stage}", "", "")
                        back.result()
                result = command.stdout.read()
                status = command.wait()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(command.pid, signal.SIGKILL)
            if status == -signal.SIGKILL:
                continue
            if status:
                sys.stderr.write("".join(said))
            return (json.loads(result) if status == 0 else {}), said[-1]


def main() -> int:
    """Do the runs, print the table, and return how many ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", choices=_ALL, default=_ALL)
    kinds = ("host", "command")
    parser.add_argument("--what", nargs="+", choices=kinds, default=kinds, help="what dies")
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"apart: {reason}")
    words = ["env", "MLFLOW_TRACKING_URI=", sys.executable, "-m"]
    table, wrong = Table("what happened", "seconds", "outcome"), 0
    with tempfile.TemporaryDirectory() as name:
        here = Path(name) / "run"
        start = time.monotonic()
        place = ["--num_cpus", "2", "--output_dir", str(here)]
        command = [*words, "jobs.run", *_SETTINGS, *_SEARCH, *place]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        scores, weights = json.loads(done.stdout)["scores"], model_hash(here)
        table.row("nothing, in a folder", f"{time.monotonic() - start:.0f}", "")
    for kind in options.what:
        with hosts(4, apart=True) as cloud, store_on(cloud, 3) as bucket:
            cloud.start_all()
            place = ["--output_dir", bucket, "--address", cloud.head]
            looked = cloud.run(0, *words, "jobs.doctor", *_SETTINGS, *place)
            assert looked.returncode == 0, looked.stdout + looked.stderr
            start = time.monotonic()
            run = [*words, "jobs.run", *_SETTINGS, *_SEARCH, *place]
            result, text = disturb(cloud, run, set(options.stages), kind, table)
            seconds = time.monotonic() - start
            hashed = (
                "import sys; from benchmarks.store_faults import *; print(model_hash(sys.argv[1]))"
            )
            found = cloud.run(0, sys.executable, "-c", hashed, bucket).stdout.strip()
            alike = bool(result) and result["scores"] == scores and found == weights
            table.row("the run", f"{seconds:.0f}", "alike" if alike else text or "other scores")
            wrong += not alike
    return wrong


if __name__ == "__main__":
    sys.exit(main())
