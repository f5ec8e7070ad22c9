"""Runs one small search on 1 CPU, on 2 CPUs and on three hosts, with one and two processes a trial.

    python -m benchmarks.search_places

The hosts are network namespaces (root and iproute2 are needed). Each row must have all its trials
trained to the end; trials of one process end with the same table wherever they ran.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.kills import table
from benchmarks.measure import Table
from pipeline.config import ClusterConfig, SearchConfig
from pipeline.config.folders import RunFolder
from tests.helpers.hosts import hosts, why_not
from tests.helpers.small_training import config_of, prepare, words_of

_SPACE = "options: {lr: [0.001, 0.01], dk: [2, 4]}\n"
_LIMIT_SECONDS = 1200.0


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"search_places: {reason}")
    with hosts(4) as cluster:
        root = cluster.shared
        prepare(root)
        (root / "space.yaml").write_text(_SPACE)
        cluster.start_all()
        rows = Table("search on", "processes a trial", "exit code", "trained", "s")
        places = {"1 CPU": ["--num_cpus", "1"], "2 CPUs": ["--num_cpus", "2"]}
        places["three hosts"] = ["--address", cluster.head]
        trained, tables = [], []
        for place, words in places.items():
            for processes in (1, 2):
                train = {"world_size": processes, "steps_per_epoch": 8, "mid_epoch_seconds": 300.0}
                search = SearchConfig(space=str(root / "space.yaml"))
                parts = {"search": search, "cluster": ClusterConfig()}
                config = config_of(root, f"{place}, {processes}", **train).model_copy(update=parts)
                command = ["python", "-m", "jobs.tune", *words_of(config), *words]
                start = time.monotonic()
                done = cluster.run(0, *command, seconds=_LIMIT_SECONDS)
                sys.stderr.write(done.stderr if done.returncode else "")
                trials = table(RunFolder.of(config).root) if done.returncode == 0 else []
                trained.append(sum(trial["status"] == "done" for trial in trials))
                tables += [trials] if processes == 1 else []
                seconds = f"{time.monotonic() - start:.0f}"
                rows.row(place, processes, done.returncode, f"{trained[-1]} of 4", seconds)
    same = all(trials == tables[0] for trials in tables)
    print(f"the same table with one process a trial: {'yes' if same else 'NO'}")
    return 0 if same and set(trained) == {4} else 1


if __name__ == "__main__":
    sys.exit(main())
