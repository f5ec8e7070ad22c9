"""Every command that writes to a run's folder leaves it to the one that does already."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from tests.helpers import runs
from tests.helpers.processes import OTHER_COMMAND, written_by_another


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    runs.unpack(place)
    return place


def _words(folder: Path, job: str) -> list[str]:
    run, songs = folder / "finished", ["--musdb_root", str(folder / "songs")]
    more = {
        "run": songs,
        "preprocess": songs,
        "repair": ["--repair", *songs],
        "tune": ["--space", str(folder / "space.yaml")],
        "evaluate": songs,
    }
    return ["--output_dir", str(run), *more.get(job, [])]


@pytest.mark.parametrize("job", ["run", "preprocess", "train", "tune", "evaluate", "report"])
def test_a_folder_that_another_command_writes_is_left_to_it(
    folder: Path, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"jobs.{job}").main
    run = folder / "finished"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    with written_by_another(run):
        assert main(_words(folder, job)) == 1
        told = capsys.readouterr().err.splitlines()
    assert told == [
        f"{job}: in {run} ...",
        f"{job}: error: output_dir: {run} is in use by another running command, {OTHER_COMMAND}; "
        "wait for it, stop it, or name another output_dir",
    ]
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    assert after == before


def test_a_report_is_not_written_where_a_link_leads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.report import main

    run = tmp_path / "run"
    shutil.copytree(folder / "finished", run)
    shutil.rmtree(run / "report")
    (tmp_path / "home").mkdir()
    (run / "report").symlink_to(tmp_path / "home")
    assert main(["--output_dir", str(run), "--quiet"]) == 2
    assert capsys.readouterr().err == (
        f"report: error: output_dir: {run / 'report'} is a link, and nothing is written where a "
        "link leads; put what it leads to in its place, or name another output_dir\n"
    )
    assert list((tmp_path / "home").iterdir()) == []


def test_readers_do_not_wait_for_the_writer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.preprocess import main

    with written_by_another(folder / "finished"):
        assert main(["--verify", "--output_dir", str(folder / "finished")]) == 0
    assert "in use" not in capsys.readouterr().err


def test_shards_elsewhere_need_no_right_to_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import preprocess

    made: list[str] = []
    monkeypatch.setattr("pipeline.workflow.stages.make_shards", lambda config: made.append("yes"))
    monkeypatch.setattr(preprocess, "shards_result", lambda config, made: preprocess.Result("", {}))
    words = ["--musdb_root", str(folder / "songs"), "--shards_dir", str(tmp_path / "shards")]
    with written_by_another(folder / "finished"):
        assert preprocess.main([*words, "--output_dir", str(folder / "finished")]) == 0
    assert made == ["yes"]
