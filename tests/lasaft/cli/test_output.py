"""What a command prints never costs its result: odd encodings, closed and full streams, names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli.job_table import JOBS
from lasaft.checkpoint import save_checkpoint
from tests.helpers import ROOT
from tests.helpers.audio import noise, tiny_model, write

COMMANDS = ["lasaft.cli", "lasaft.cli separate", "jobs", *(f"jobs.{job}" for job in JOBS)]
NAME = "宇多田\u3000ヒカル 👩\u200d🎤 \U0001fae8 é"


def shell(
    command: str, folder: Path, **environment: str
) -> tuple[list[int], subprocess.CompletedProcess[bytes]]:
    """Run a command line in bash; return the exit code of each part of its pipe, and all else."""
    words = ["bash", "-c", f'{command}; echo "${{PIPESTATUS[@]}}" > {folder / "codes"}']
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(words, capture_output=True, env=variables, cwd=ROOT, check=False)
    return [int(code) for code in (folder / "codes").read_text().split()], done


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command that separates a song whose name few encodings have; it is the first line."""
    folder = tmp_path_factory.mktemp("songs")
    model = tiny_model()
    save_checkpoint(folder / "c", model.state_dict(), model.config, {})
    song = write(folder / f"{NAME}.wav", noise(2, 1000))
    words = f"separate '{song}' --checkpoint {folder / 'c'} --targets bass --device cpu"
    return f"{sys.executable} -m lasaft.cli {words} --output_dir"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_that_nobody_reads_ends_well(tmp_path: Path, name: str) -> None:
    words = f"{sys.executable} -m {name} --help"
    for ending in ("2>&1 | true", ">&- 2>&-"):
        codes, done = shell(f"{words} {ending}", tmp_path)
        assert (codes[0], done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C"},
    ],
    ids=["latin-1", "ascii", "C"],
)
def test_a_result_is_told_in_every_encoding(
    tmp_path: Path, command: str, variables: dict[str, str]
) -> None:
    codes, done = shell(f"{command} {tmp_path / 'a'}", tmp_path, **variables)
    assert codes == [0]
    assert rb"\u3000\u30d2" in done.stdout or NAME.encode() in done.stdout
    assert (tmp_path / "a" / NAME / "bass.wav").is_file()


def test_a_result_for_programs_is_told_in_the_smallest_encoding(
    tmp_path: Path, command: str
) -> None:
    strict = {"PYTHONIOENCODING": "ascii:strict"}
    codes, done = shell(f"{command} {tmp_path / 'a'} --json", tmp_path, **strict)
    assert codes == [0]
    song = json.loads(done.stdout)["songs"][0]
    assert Path(song["files"]["bass"]) == tmp_path / "a" / NAME / "bass.wav"
    assert Path(song["files"]["bass"]).is_file()


@pytest.mark.parametrize("ending", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&1 | true"])
def test_a_result_that_nobody_reads_is_made(tmp_path: Path, command: str, ending: str) -> None:
    codes, done = shell(f"{command} {tmp_path / 'a'} --quiet {ending}", tmp_path)
    assert (codes[0], done.stderr) == (0, b"")
    stem = (tmp_path / "a" / NAME / "bass.wav").read_bytes()
    assert (stem[:4], len(stem) > 8000) == (b"RIFF", True)  # and nothing printed is in it


def test_a_result_that_cannot_be_told_is_an_error_in_one_line(tmp_path: Path, command: str) -> None:
    codes, done = shell(f"{command} {tmp_path / 'a'} --quiet > /dev/full", tmp_path)
    assert (codes, done.stderr) == ([1], b"lasaft: No space left on device\n")
    assert (tmp_path / "a" / NAME / "bass.wav").is_file()


def test_a_job_whose_output_nobody_reads_goes_on(tmp_path: Path) -> None:
    """Its lines of progress are written one by one."""
    program = (
        "import sys; from lasaft.output import keep_output; keep_output()\n"
        "for number in range(100_000): print('line', number, file=sys.stderr, flush=True)\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close()\n"
    )
    (tmp_path / "job.py").write_text(program)
    codes, _ = shell(f"{sys.executable} {tmp_path / 'job.py'} 2>&1 | head -1", tmp_path)
    assert codes == [0, 0]
    assert (tmp_path / "done").exists()


def test_characters_that_a_terminal_obeys_are_shown_escaped(tmp_path: Path, command: str) -> None:
    song = write(tmp_path / "a\x1b[31mb.wav", noise(2, 1000, scale=9.0))
    words = command.partition("separate '")[0] + "separate '" + str(song) + "'"
    rest = command.partition("--checkpoint")[2]
    codes, done = shell(f"{words} --format flac --checkpoint{rest} {tmp_path / 'out'}", tmp_path)
    assert codes == [0]
    assert b"\x1b" not in done.stdout + done.stderr
    assert rb"a\x1b[31mb.wav: values above full scale were clipped" in done.stderr
