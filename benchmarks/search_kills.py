"""Kills a search at random moments and compares its table to an undisturbed one's.

    python -m benchmarks.search_kills --kills 3 --seed 0 -- --preset table1_laptop

What stands behind ``--`` goes to ``jobs.tune`` (and its songs to ``jobs.preprocess``). A trial's
process, the driver or the raylet gets SIGKILL; where the command ends with that, it is given again.
With ``--folder`` everything is kept there, and what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kills import processes

KINDS = ("trial", "driver", "raylet")
_WORDS = {"trial": "ResourceTrainable", "raylet": "raylet/raylet"}
_LIMIT_SECONDS = 7200.0
# Without its raylet a driver ends by itself, within some 10 s on idle cores.
_DEATH_SECONDS = 300.0


def start(job: str, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Give a command; it may be given again and again."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", *words],
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip


def epochs_of(output: Path) -> int:
    """Return the epochs of all trials so far, by their journals."""
    journals = output.glob("search/trials/*/training/metrics.jsonl")
    return sum(file.read_bytes().count(b'"valid/loss"') for file in journals)


def disturb(
    words: Sequence[str], output: Path, log: Path, moments: Sequence[int], chance: random.Random
) -> Iterator[str]:
    """Search with a kill after each of ``moments`` (epochs of all trials); yield what was done."""
    kinds = list(KINDS) * (len(moments) // len(KINDS) + 1)
    chance.shuffle(kinds)
    command = start("tune", words, log)
    try:
        for moment, kind in zip(moments, kinds, strict=False):
            end = time.monotonic() + _LIMIT_SECONDS
            while epochs_of(output) < moment and command.poll() is None:
                assert time.monotonic() < end, f"never came to epoch {moment}"
                time.sleep(0.05)
            time.sleep(chance.uniform(0, 3))
            found = [] if kind == "driver" else processes(command.pid, _WORDS[kind])
            if found:
                chance.choice(found).kill()
            else:
                os.kill(command.pid, signal.SIGKILL)
            killed = kind if found else "driver"
            yield f"{killed} at epoch {epochs_of(output)}"
            if killed != "trial":
                command.wait(_DEATH_SECONDS)
                command = start("tune", words, log)
        assert command.wait(_LIMIT_SECONDS) == 0, f"the last command failed: {log}"
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
        command.wait()


def table(output: Path) -> list[dict[str, Any]]:
    """Return the rows of a search without what the clock decides."""
    rows = json.loads((output / "search" / "results.json").read_bytes())["trials"]
    return [{k: v for k, v in row.items() if k not in ("training_seconds", "seconds")}
            for row in rows]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=28, help="epochs of the whole search")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.folder or Path(temporary)).absolute()
        root.mkdir(parents=True, exist_ok=True)
        log, words = root / "log.txt", options.words or ["--preset", "table1_laptop"]
        shards = ["--shards_dir", str(root / "shards")]
        preset = words[: words.index("--preset") + 2] if "--preset" in words else []
        made = start("preprocess", [*preset, *shards, "--output_dir", str(root / "songs")], log)
        assert made.wait() == 0, f"no shards: {log}"
        chance = random.Random(options.seed)
        moments = sorted(chance.sample(range(1, options.epochs - 1), options.kills))
        both = {name: [*words, *shards, "--output_dir", str(root / name)]
                for name in ("killed", "calm")}  # fmt: skip
        if not (root / "killed" / "search" / "results.json").exists():
            for done in disturb(both["killed"], root / "killed", log, moments, chance):
                print("killed:", done, flush=True)
        began = time.monotonic()
        assert start("tune", both["calm"], log).wait() == 0, f"the undisturbed one failed: {log}"
        print(f"the undisturbed search took {(time.monotonic() - began) / 60:.1f} minutes")
        same = table(root / "killed") == table(root / "calm")
        print(f"{len(table(root / 'calm'))} rows, the same table: {'yes' if same else 'NO'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
