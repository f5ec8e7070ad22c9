"""Kills preprocessing at random moments and compares what it ends with to an undisturbed run.

    python -m benchmarks.preprocess_kills --kills 20 --seed 0

Each time ``jobs.preprocess`` starts on an empty folder, and at a random moment one of its processes
gets SIGKILL: a Ray worker that builds a shard, any Ray worker, or the job itself. Where the command
ends with that, it is given again. Every file must then be that of the undisturbed run, byte for
byte, and no half-written one may be left. Only processes that were started here are killed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.helpers.shards import make_shards, small_config
from tests.helpers.wavs import write_track

KINDS = ("task", "worker", "job")
_LIMIT_SECONDS = 240.0
_MOST_STARTS = 3  # on a machine under load Ray itself may not start in time


def write_songs(root: Path, tracks: int = 6, seconds: float = 12.0) -> Path:
    """Write tracks of noise, long enough that a kill finds one half done."""
    for number in range(tracks):
        write_track(root / "train" / str(number), seconds=seconds, first_seed=10 * number)
    return root


def command(songs: Path, output: Path) -> list[str]:
    """Return the job's command line for the settings of ``small_config``."""
    words = f"--n_fft 512 --hop_length 256 --num_cpus 2 --musdb_root {songs} --output_dir {output}"
    return [sys.executable, "-m", "jobs.preprocess", *words.split()]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a shard folder but its lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def _victims(job: psutil.Process, kind: str) -> Iterator[psutil.Process]:
    if kind == "job":
        yield job
        return
    for child in job.children(recursive=True):
        try:
            name = " ".join(child.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if name.startswith("ray::build_shards" if kind == "task" else "ray::") and (
            "Agent" not in name  # a raylet ends when its agent does
        ):
            yield child


def disturb(songs: Path, output: Path, kind: str, draw: random.Random) -> tuple[float | None, bool]:
    """Run the job, kill once, run it again if it ended with that.

    Returns:
        The seconds until the kill, None if the job had ended before it, and whether the command
        had to be given again.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        command(songs, output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    killed = _kill(psutil.Process(process.pid), output / "shards", kind, draw, process)
    _, said = process.communicate(timeout=_LIMIT_SECONDS)
    seconds = None if killed is None else killed - started
    if process.returncode == 0:
        return seconds, False
    if kind != "job":
        print(said.strip().splitlines()[-1])
    for _ in range(_MOST_STARTS):
        again = subprocess.run(
            command(songs, output),
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
        if again.returncode == 0:
            break
        print(f"    the same command: {again.stderr.strip().splitlines()[-1]}")  # Ray timed out?
    else:
        raise AssertionError(f"the same command failed {_MOST_STARTS} times")
    return seconds, True


def _kill(
    job: psutil.Process, shards: Path, kind: str, draw: random.Random,
    process: subprocess.Popen[str],
) -> float | None:  # fmt: skip
    """Wait until shards are being written, and a random while longer; kill; return the time.

    None: the job has ended before there was anything to kill.
    """
    while not list(shards.glob("*/.*.tmp-*")) and process.poll() is None:
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 1.5))
    while process.poll() is None:
        victims = list(_victims(job, kind))
        if victims:
            draw.choice(victims).send_signal(signal.SIGKILL)
            return time.monotonic()
        time.sleep(0.005)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, failures = random.Random(asked.seed), 0
    root = Path(tempfile.mkdtemp(prefix="preprocess-kills-"))
    try:
        songs = write_songs(root / "songs")
        make_shards(small_config(songs, root / "whole"))
        whole = contents(root / "whole" / "shards")
        number = 0
        while number < asked.kills:
            kind, output = KINDS[number % len(KINDS)], root / f"run-{number}"
            seconds, again = disturb(songs, output, kind, draw)
            if seconds is None:
                print("  - the job had ended before the kill: once more")
                shutil.rmtree(output)
                continue
            found = contents(output / "shards")
            others = [n for n in whole.keys() | found.keys() if whole.get(n) != found.get(n)]
            failures += bool(others)
            shutil.rmtree(output)
            verdict = f"DIFFERS in {', '.join(sorted(others))}" if others else "byte-identical"
            how = "given again" if again else "went on"
            number += 1
            print(
                f"{number:3} {kind:6} killed after {seconds:5.1f} s, {how}: {verdict}", flush=True
            )
    finally:
        shutil.rmtree(root)
    print(f"{asked.kills - failures} of {asked.kills} runs ended as the undisturbed one")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
