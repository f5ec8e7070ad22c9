"""What a command says is kept beside its run in an object store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import fs

from tests.helpers import ROOT
from tests.helpers.object_store import object_names

# A command that says what it is told, and then does it.
_COMMAND = """
import sys, time
from jobs.cli.command import Command
from jobs.cli.run import Result, run_job
from lasaft.errors import StageError
from pipeline.cluster import job_log
from pipeline.cluster.one_writer import alone_in_run
from pipeline.cluster.progress import say
from pipeline.config import RunConfig

job_log._EVERY_SECONDS = 0.2
place, what = sys.argv[1:]
config = RunConfig(output_dir=place)

def work(command):
    with alone_in_run(config):
        say("begun")
        if what == "hang":
            time.sleep(60)
        if what == "fail":
            raise StageError("no GPU answers")
        if what == "break":
            raise ZeroDivisionError
    return Result("SDR 5.5", {})

sys.exit(run_job("run", [], lambda words: Command("run", config), work))
"""


def _start(place: str, what: str, tmp_path: Path, out: int | Path) -> subprocess.Popen[bytes]:
    """Start a command as Ray starts a job: all that it says goes to one file."""
    settings = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", _COMMAND, place, what]
    if isinstance(out, int):
        return subprocess.Popen(words, env=settings, stdout=out, stderr=out)
    with out.open("wb") as file:
        return subprocess.Popen(words, env=settings, stdout=file, stderr=file)


def _logs(place: str) -> list[str]:
    return sorted(name for name in object_names(place) if name.startswith("logs/"))


def _text(place: str) -> str:
    (name,) = _logs(place)
    system, path = fs.FileSystem.from_uri(place)
    with system.open_input_stream(f"{path}/{name}") as file:
        return file.read().decode()


@pytest.mark.parametrize(
    ("what", "code", "last"),
    [
        ("end", 0, "SDR 5.5\n"),
        ("fail", 1, "run: error: no GPU answers\n"),
        ("break", 1, "ZeroDivisionError\n"),
    ],
)
def test_the_log_of_a_command_ends_with_its_last_words(
    what: str, code: int, last: str, place: str, tmp_path: Path
) -> None:
    out = tmp_path / "driver.log"
    assert _start(place, what, tmp_path, out).wait(timeout=60) == code
    text = _text(place)
    assert text.startswith(f"run: in {place.partition('?')[0]} ...\nbegun\n")
    assert text.endswith(last)
    if what != "break":  # an interpreter that ends tells its own frames besides
        assert text == out.read_text()


def test_a_command_that_is_killed_leaves_its_log(place: str, tmp_path: Path) -> None:
    process = _start(place, "hang", tmp_path, tmp_path / "driver.log")
    try:
        end = time.monotonic() + 60
        while not _logs(place) or "begun" not in _text(place):
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert _text(place).endswith("begun\n")


def test_two_commands_on_a_run_have_two_logs(place: str, tmp_path: Path) -> None:
    for _ in range(2):
        assert _start(place, "end", tmp_path, tmp_path / "driver.log").wait(timeout=60) == 0
    assert len(_logs(place)) == 2


def test_what_goes_to_no_file_stays_where_it_is(place: str, tmp_path: Path) -> None:
    process = _start(place, "end", tmp_path, subprocess.PIPE)
    assert b"SDR 5.5" in process.communicate(timeout=60)[0]
    assert _logs(place) == []
