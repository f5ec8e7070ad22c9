"""Pipes, folders and links where a run has files: one clear line, and nothing waits."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.evaluation.summary import read_summary, write_summary
from tests.helpers import runs

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    runs.unpack(place)
    return place


@pytest.fixture
def run(stored: Path, tmp_path: Path) -> Path:
    shutil.copytree(stored / "finished", tmp_path / "run")
    return tmp_path / "run"


def _give(job: str, run: Path, *words: str) -> int:
    return importlib.import_module(f"jobs.{job}").main(["--output_dir", str(run), *words])


def _socket(place: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # its address has little room
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(place.name)
    os.chdir(here)


def _summary(run: Path) -> Path:
    return next(run.glob("scores/*/summary.json"))


@pytest.mark.parametrize("kind", [os.mkfifo, _socket])
@pytest.mark.parametrize(
    "name",
    ["config.json", ".lock", "training/metrics.jsonl", "checkpoint/config.json", "scores/x/y.json",
     "tracking/new", "shards/manifest.json", "steps/train.json"],
)  # fmt: skip
@pytest.mark.parametrize("job", ["report", "evaluate", "doctor"])
def test_nothing_waits_for_a_pipe(
    run: Path, job: str, name: str, kind: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    place = run / name
    place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    kind(place)
    assert _give(job, run) == 2
    assert f"{place} is a pipe, a socket or a device, allowed: files" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["config.json", "training/metrics.jsonl", "checkpoint/config.json"]
)
def test_a_folder_in_the_place_of_a_file_is_told(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    assert _give("report", run) == 2
    line = f"report: error: output_dir: {run / name} is a folder, allowed: a file\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("name", ["training", "checkpoint"])
def test_a_file_in_the_place_of_a_folder_is_told(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).write_text("no folder")
    assert _give("report", run) == 2
    assert f"{run / name} is a file, allowed: a folder" in capsys.readouterr().err


def test_a_report_reads_through_links_and_writes_through_none(run: Path, tmp_path: Path) -> None:
    for name in ("checkpoint", "checkpoints", "training", "scores"):
        if (run / name).exists():
            (run / name).rename(tmp_path / name)
            (run / name).symlink_to(tmp_path / name)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("[!r]*/**/*")}
    assert _give("report", run, "--log", "False") == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("[!r]*/**/*")} == before
    for name in ("report", "tracking"):
        shutil.rmtree(run / name, ignore_errors=True)
        (tmp_path / "home").mkdir(exist_ok=True)
        (run / name).symlink_to(tmp_path / "home")
        assert _give("report", run, "--log", "False") == 2
        (run / name).unlink()
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("value", [1e308, -1e308, 1e31, 5e-324])
def test_a_journal_of_huge_numbers_gives_a_report(run: Path, value: float) -> None:
    journal = run / "training" / "metrics.jsonl"
    line = {"step": 3, "values": {"train/loss": value, "valid/vocals/SDR": value}}
    huge = {"step": 1e308, "values": {"train/loss": 1.0}}
    with journal.open("a") as file:
        file.write(f"{json.dumps(line)}\n{json.dumps(huge)}\n")
    assert _give("report", run, "--log", "False") == 0


def test_the_last_line_of_a_journal_is_told_if_it_is_none(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (run / "training" / "metrics.jsonl").open("ab") as file:
        file.write(b"\x80\xff odd")
    assert _give("report", run, "--log", "False") == 0
    assert "metrics.jsonl: its last line is cut off and left out" in capsys.readouterr().err


def test_a_score_beyond_all_scores_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _summary(run)
    summary = read_summary(file)
    name, figure = next(iter(summary.average.items()))
    average = {**summary.average, name: figure.model_copy(update={"median": 1e308})}
    write_summary(file, summary.model_copy(update={"average": average}))
    assert _give("report", run, "--log", "False") == 1
    assert f"{file}: not a summary of scores (average." in capsys.readouterr().err
