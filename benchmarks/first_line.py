"""How long each command is silent when it begins, and how soon it answers Ctrl-C.

    python -m benchmarks.first_line

Cold: the files of the environment are not in the system's cache any more.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Table
from jobs.cli.job_table import JOBS
from lasaft.cli.commands import VERBS
from tests.helpers import runs

_SONGS = ["--synthetic_train", "2", "--synthetic_valid", "1", "--synthetic_test", "1"]
_SMALL = [*_SONGS, "--synthetic_seconds", "3", "--num_cpus", "1"]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    table = Table("command", "cold, s", "warm, s", "Ctrl-C, s")
    with tempfile.TemporaryDirectory() as folder:
        runs.unpack(Path(folder))
        for name, command in _commands(folder).items():
            _forget()
            figures = [_silence(command)[0], *_silence(command, signal.SIGINT)]
            table.row(name, *("-" if figure is None else f"{figure:.2f}" for figure in figures))


def _commands(folder: str) -> dict[str, list[str]]:
    run, songs, out = f"{folder}/finished", f"{folder}/songs", ["--output_dir", f"{folder}/out"]
    checkpoint, shards = f"{run}/checkpoint", ["--shards_dir", f"{run}/shards", "--num_cpus", "1"]
    train = ["--preset", "demo", *shards, *out]
    verbs = {
        "separate": [*map(str, Path(songs).glob("test/*/*.wav")), "--checkpoint", checkpoint, *out],
        "score": [f"{songs}/test", f"{songs}/test", *out],
        "import-checkpoint": [f"{checkpoint}/weights.safetensors", f"{folder}/imported"],
        "export": [checkpoint, f"{folder}/network.pt2"],
        "card": [checkpoint],
    }
    jobs = {
        "doctor": ["--musdb_root", songs, *out],
        "run": ["--preset", "demo", *_SMALL, *out],
        "preprocess": [*_SMALL, *out],
        "tune": ["--space", "small", *train],
        "train": train,
        "evaluate": ["--musdb_root", songs, "--checkpoint", checkpoint, *out],
        "report": ["--output_dir", run],
        "main": ["--mode", "train", "--ckpt_root_path", f"{folder}/main", *_SMALL],
    }
    commands = {f"lasaft {name}": ["lasaft.cli", name, *verbs[name]] for name in VERBS}
    return commands | {f"jobs.{name}": [f"jobs.{name}", *jobs[name]] for name in JOBS}


def _forget() -> None:
    """Let the system forget the files that Python reads, as after a start of the machine."""
    for file in Path(sys.prefix, "lib").rglob("*"):
        if file.is_file() and not file.is_symlink():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _silence(command: list[str], number: int | None = None) -> tuple[float, float | None]:
    """Return the seconds to the first line, and from a signal some seconds later to its answer."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stderr=subprocess.STDOUT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{command}: said nothing"
    first, answer = time.monotonic() - begin, None
    time.sleep(3.0)
    if number is not None and process.poll() is None:
        sent = time.monotonic()
        process.send_signal(number)
        for line in process.stdout:
            if line.startswith(b"stopping"):
                answer = time.monotonic() - sent
    process.terminate()
    process.communicate()
    return first, answer


if __name__ == "__main__":
    main()
