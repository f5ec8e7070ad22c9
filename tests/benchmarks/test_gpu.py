"""The script for a GPU, on a CPU: without Ray and PyArrow too; a bad part spoils no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import NEW_SHELL, ROOT

# Read by Python at its start: these packages are as if they were not installed.
_HIDE = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
HIDDEN = {"ray", "mlflow", "pyarrow", "yaml", "psutil", "fsspec", "musdb", "museval", "matplotlib"}
def hiding(name, *others):
    return None if name.partition(".")[0] in HIDDEN else find(name, *others)
PathFinder.find_spec = hiding
"""

_BROKEN = """
import os, sys, time
from benchmarks import gpu

def slow(where):
    yield "begun", "1", ""
    time.sleep(600)

def wrong(where):
    raise ValueError("two\\nlines")
    yield

def dead(where):
    os._exit(9)
    yield

def well(where):
    yield "this", "is well", ""

gpu.PARTS = {"slow": (slow, 2), "wrong": (wrong, 60), "dead": (dead, 60), "well": (well, 60)}
sys.argv = ["gpu", "--device", "cpu"]
gpu.main()
"""


def _run(*words: str, path: Path) -> subprocess.CompletedProcess[str]:
    env = NEW_SHELL | {"PYTHONPATH": os.pathsep.join((str(path), str(ROOT)))}
    command = (sys.executable, *words)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_the_script_runs_where_little_is_installed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_HIDE)
    done = _run("-m", "benchmarks.gpu", "--device", "cpu", "--tiny", path=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "| the same bits |",
        "left out: without ray, mlflow, pyarrow",
        "< 1e-04",
        "times realtime",
    ):
        assert said in done.stdout
    assert "no part failed" in done.stdout


def test_a_part_that_fails_hangs_or_dies_is_named_and_the_others_are_told(tmp_path: Path) -> None:
    done = _run("-c", _BROKEN, path=tmp_path)
    assert done.returncode == 1
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| slow | begun | 1 |  |",
        "| slow | failed | took more than 6 s |  |",
        "| wrong | failed | ValueError: two |  |",
        "| dead | failed | its process died |  |",
        "| well | this | is well |  |",
    ]
    assert "slow, wrong, dead failed" in done.stdout
