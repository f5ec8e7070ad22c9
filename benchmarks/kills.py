"""Kills a job at random moments and compares what it ends with to an undisturbed one.

    python -m benchmarks.kills --kills 50 --seed 0
    python -m benchmarks.kills --job preprocess --kills 20
    python -m benchmarks.kills --job search --kills 3 --preset table1_laptop

At random moments a process of the job gets SIGKILL, or the command gets Ctrl-C; where the command
ends with that, it is given again. Of a training, weights, optimiser and history must be equal to
the last bit; of preprocessing, every file, and no half-written one may be left; of a search, its
table. Only processes that were started here are killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Table
from tests.helpers.kills import RAYLET, UNDISTURBED, Command, Job, disturb, training
from tests.helpers.small_training import prepare
from tests.helpers.wavs import write_track


def preprocessing(root: Path) -> Job:
    """Songs long enough that a kill finds a shard half written; progress is counted in files."""
    for number in range(6):
        write_track(root / f"songs/train/{number}", seconds=12.0, first_seed=10 * number)

    def words(run: str) -> list[str]:
        settings = ["--n_fft", "512", "--hop_length", "256", "--num_cpus", "2"]
        return [*settings, f"--musdb_root={root / 'songs'}", f"--output_dir={root / run}"]

    def hashes(run: str) -> set[tuple[str, str]]:
        folder = root / run / "shards"
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        found = {str(file.relative_to(folder)): file.read_bytes() for file in files}
        return {(name, hashlib.sha256(data).hexdigest()) for name, data in found.items()}

    return Job(
        root,
        "preprocess",
        # A raylet ends when its agent does.
        {"task": "^ray::build_shards", "worker": "^ray::(?!.*Agent)", "driver": ""},
        words=words,
        progress=lambda run: len(list((root / run / "shards").glob("*/*.arrow*"))),
        differences=lambda run: sorted({file for file, _ in hashes(run) ^ hashes(UNDISTURBED)}),
    )


def search(root: Path, preset: str) -> Job:
    """Searches of a preset; progress is counted in epochs of all trials."""

    def words(run: str) -> list[str]:
        places = [f"--shards_dir={root / 'shards'}", f"--output_dir={root / run}"]
        return ["--preset", preset, *places]

    def epochs(run: str) -> int:
        journals = (root / run).glob("search/trials/*/training/metrics.jsonl")
        return sum(file.read_bytes().count(b'"valid/loss"') for file in journals)

    def different(run: str) -> list[str]:
        return [] if table(root / run) == table(root / UNDISTURBED) else ["table"]

    with Command("preprocess", words("songs"), root / "log.txt") as command:
        command.finish()
    kinds = {"trial": "ResourceTrainable", "driver": "", "raylet": RAYLET}
    return Job(root, "tune", kinds, words, epochs, different, kills_a_run=3, pause_seconds=3.0)


def table(output: Path) -> list[dict[str, Any]]:
    """Return the rows of a search without what the clock decides."""
    rows = json.loads((output / "search" / "results.json").read_bytes())["trials"]
    clock = ("training_seconds", "seconds")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", choices=("train", "preprocess", "search"), default="train")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="no new run after these")
    parser.add_argument("--preset", default="table1_laptop", help="of the search")
    options = parser.parse_args()
    # A shell starts background commands deaf to Ctrl-C, and theirs would be too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began, number, failures, seconds = time.monotonic(), 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.job == "train":
            prepare(root)
            job = training(root)
        else:
            job = search(root, options.preset) if options.job == "search" else preprocessing(root)
        with job.command(UNDISTURBED) as command:
            command.finish()
        total = job.progress(UNDISTURBED)
        rows = Table("run", "killed", f"at, of {total}", "s until there again", "end")
        while len(seconds) < options.kills and time.monotonic() - began < 60 * options.minutes:
            chance, run = random.Random(f"{options.seed}/{number}"), f"run {number}"
            count = min(options.kills - len(seconds), job.kills_a_run)
            kills = list(disturb(job, run, chance.choices([*job.kinds], k=count), total, chance))
            wrong = job.differences(run)
            verdict = f"differs: {wrong[:3]}" if wrong else "identical"
            for each in kills:
                rows.row(number, each.kind, each.progress, f"{each.seconds:.1f}", verdict)
            seconds += [each.seconds for each in kills]
            failures += bool(wrong)
            number += 1
            shutil.rmtree(root / run)
    print(
        f"\n{len(seconds)} kills in {(time.monotonic() - began) / 60:.1f} minutes, {failures} runs "
        f"differ; until there again: median {statistics.median(seconds or [0]):.1f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
