"""Gives the doctor and a small run on machines that are odd in one way, and counts what happens.

    python -m benchmarks.odd_machines              all of them: some 10 minutes
    python -m benchmarks.odd_machines --ways home  those whose names hold a word

A machine passes if the run ends with its scores, or in a few lines of which the last says what is
wrong; the doctor must say the same before. Ends with 1 if any gave a traceback, a page of text or a
silent fault. Needs root, for mounts of its own (Linux).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import Table
from tests.helpers import ROOT
from tests.helpers.programs import path_without

_SMALL = [
    "--preset", "demo", "--synthetic_train", "2", "--synthetic_valid", "1", "--synthetic_test", "1",
    "--synthetic_seconds", "2", "--steps_per_epoch", "4", "--max_epochs", "1",
    "--num_frame", "16", "--n_blocks", "3", "--internal_channels", "4", "--n_internal_layers", "1",
]  # fmt: skip
_LIMIT_SECONDS = 300
_MOST_LINES = 25  # of a run that fails: its progress, and what is wrong


@dataclass(frozen=True)
class Machine:
    """What is odd: variables, mounts made before (``$0`` is an empty folder), more options."""

    variables: dict[str, str] = field(default_factory=dict)
    mounts: str = "true"
    options: tuple[str, ...] = ()


def machines(root: Path) -> dict[str, Machine]:
    """Return the odd machines by what is odd about them."""
    deep, file = root / ("d" * 100) / ("e" * 60), root / "file"
    deep.mkdir(parents=True)
    file.touch()
    tracking = {
        f"tracking_uri {uri}": Machine(options=("--tracking_uri", uri))
        for uri in ("./mlruns", f"file:{root}/mlruns", "localhost:5000", "nothing://x")
    }
    return {
        "nothing": Machine(),
        "TMPDIR too long for sockets": Machine({"TMPDIR": str(deep)}),
        "RAY_TMPDIR too long for sockets": Machine({"RAY_TMPDIR": str(deep)}),
        "RAY_TMPDIR is a file": Machine({"RAY_TMPDIR": str(file)}),
        "HOME cannot be written": Machine({"HOME": "/proc/1"}),
        "HOME is not there": Machine({"HOME": str(root / "none")}),
        "the output's disk is full": Machine(mounts='mount -t tmpfs -o size=1m none "$0"'),
        "the output's disk is read only": Machine(mounts='mount -t tmpfs -o ro none "$0"'),
        "/dev/shm of 1 MB": Machine(mounts="mount -t tmpfs -o size=1m none /dev/shm"),
        "no ffmpeg": Machine({"PATH": path_without(root, "ffmpeg", "ffprobe")}),
        "output in latin-1": Machine({"PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}),
        "little memory for tasks": Machine({"RAY_memory_usage_threshold": "0.01"}),
        **tracking,
    }


def run(machine: Machine, job: str, output: Path) -> subprocess.CompletedProcess[str]:
    """Give a command on an odd machine."""
    output.mkdir()
    words = [sys.executable, "-m", f"jobs.{job}", *_SMALL, "--output_dir", str(output / "run")]
    script = f'{machine.mounts} && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", script, str(output), *words, *machine.options],
        cwd=ROOT,
        env={**os.environ, **machine.variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_SECONDS,
    )


def outcome(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a person saw: ``works``, the last line of a few, or ``WRONG``."""
    if done.returncode == 0:
        return "works"
    lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
    if "Traceback" in done.stderr or not lines or len(lines) > _MOST_LINES:
        return f"WRONG ({len(lines)} lines)"
    return lines[-1][:160]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ways", nargs="+", default=[""], help="words of the machines' names")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        rows, wrong = Table("odd", "the doctor", "a run ends with"), 0
        for name, machine in machines(Path(root)).items():
            if not any(way in name for way in options.ways):
                continue
            doctor = run(machine, "doctor", Path(root) / f"{name.replace('/', '_')} doctor")
            whole = run(machine, "run", Path(root) / f"{name.replace('/', '_')} run")
            faults = doctor.stdout.count("FAULT ") or int(doctor.returncode != 0)
            said = "all well" if not faults else "says so"
            ended = outcome(whole)
            rows.row(name, said, ended)
            wrong += ended.startswith("WRONG") or "Traceback" in doctor.stderr
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
