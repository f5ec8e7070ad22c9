"""Runs one small search on 1 CPU, on 2 CPUs and on three hosts, with one and two processes a trial.

    python -m benchmarks.search_places

The hosts are network namespaces (root and iproute2 are needed; without them that row is left out).
Each row must have all its trials trained to the end; trials of one process end with the same table
wherever they ran.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.kills import config_of, prepare
from benchmarks.search_kills import table
from pipeline.config import ClusterConfig, SearchConfig, to_json
from tests.helpers.hosts import hosts, why_not

SPACE = "options: {lr: [0.001, 0.01], dk: [2, 4]}\n"
_LIMIT_SECONDS = 1200.0

Run = Callable[[Sequence[str]], int]


def search_in(root: Path, name: str, processes: int, run: Run, *words: str) -> bool:
    """Search once, print a row of the table, and return whether all trials were trained."""
    whole = config_of(root, name, world_size=processes, steps_per_epoch=8, mid_epoch_seconds=300.0)
    config = whole.model_copy(
        update={"search": SearchConfig(space=str(root / "space.yaml")), "cluster": ClusterConfig()}
    )
    file = root / f"{name}.json"
    file.write_text(to_json(config))
    start = time.monotonic()
    code = run(["-m", "jobs.tune", "--preset", str(file), *words])
    rows = table(config.output_dir) if code == 0 else []
    ended = sum(row["status"] == "done" for row in rows)
    seconds = time.monotonic() - start
    print(f"| {name} | {processes} | {code} | {ended} of 4 | {seconds:.0f} |", flush=True)
    return ended == 4


def on_this_machine(words: Sequence[str]) -> int:
    """Run Python with ``words`` and return its exit code."""
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False,
        timeout=_LIMIT_SECONDS,
    )  # fmt: skip
    return _told(done)


def _told(done: subprocess.CompletedProcess[str]) -> int:
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return done.returncode


def main() -> int:
    good = []
    with tempfile.TemporaryDirectory(prefix="ls", dir="/tmp") as folder:
        root = Path(folder)
        prepare(root)
        (root / "space.yaml").write_text(SPACE)
        names = []
        print("| search on | processes a trial | exit code | trained | s |\n|---|---|---|---|---|")
        for processes in (1, 2):
            for cpus in (1, 2):
                name = f"{cpus} CPU, {processes}"
                words = ("--num_cpus", str(cpus))
                good.append(search_in(root, name, processes, on_this_machine, *words))
                names += [name] if processes == 1 else []
        if (reason := why_not()) is not None:
            print(f"three hosts: left out, {reason}")
        else:
            with hosts(4, root / "ray") as cluster:
                for host in range(cluster.count):
                    cluster.start_ray(host, num_cpus=0 if host == 0 else 1)

                def run(words: Sequence[str]) -> int:
                    return _told(cluster.run(0, "python", *words, seconds=_LIMIT_SECONDS))

                for processes in (1, 2):
                    name = f"three hosts, {processes}"
                    good.append(search_in(root, name, processes, run, "--address", cluster.head))
                    names += [name] if processes == 1 else []
        tables = [table(root / name) for name in names]
        same = all(one == tables[0] for one in tables)
        print(f"the same table with one process a trial: {'yes' if same else 'NO'}")
    return 0 if all(good) and same else 1


if __name__ == "__main__":
    sys.exit(main())
