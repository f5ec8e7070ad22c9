"""The lock of a folder: one command writes there, and the others hear whose it is."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lasaft import files
from lasaft.errors import ConfigError, LasaftError, StageError
from pipeline.cluster.locks import FileLock, alone, taken, wait_for
from pipeline.cluster.one_writer import alone_in_run
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.preprocess import alone_in_shards
from tests.helpers import ROOT
from tests.helpers.processes import OTHER_COMMAND, written_by_another


def test_another_command_is_told_who_writes_where_since_when(tmp_path: Path) -> None:
    with (
        written_by_another(tmp_path),
        pytest.raises(StageError) as refused,
        alone(tmp_path, "output_dir"),
    ):
        pass
    assert str(refused.value) == (
        f"output_dir: {tmp_path} is in use by another running command, {OTHER_COMMAND}; wait for "
        "it, stop it, or name another output_dir"
    )
    with alone(tmp_path, "output_dir"):
        pass


def test_the_owner_is_the_process_that_runs_without_its_options(tmp_path: Path) -> None:
    """Options may hold secrets."""
    held = f"import time; from pathlib import Path; from pipeline.cluster.locks import alone\n\
with alone(Path({str(tmp_path)!r}), 'output_dir'):\n    print(flush=True); time.sleep(60)"
    (tmp_path / "holder.py").write_text(held)
    words = [sys.executable, str(tmp_path / "holder.py"), "--password", "geheim"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(StageError) as refused, alone(tmp_path, "output_dir"):
                pass
        finally:
            process.kill()
    told = str(refused.value)
    assert f"holder.py on {os.uname().nodename} since 20" in told
    assert f"(process {process.pid})" in told
    assert "geheim" not in told
    with alone(tmp_path, "output_dir"):  # the system drops the lock of a killed process
        pass


def test_whoever_is_alone_in_a_folder_may_say_so_again_but_no_other_thread(tmp_path: Path) -> None:
    refused: list[LasaftError] = []

    def other() -> None:
        try:
            with alone(tmp_path / "run", "output_dir"):
                pass
        except LasaftError as error:
            refused.append(error)

    with alone(tmp_path / "run", "output_dir"):
        with alone(tmp_path / "run" / ".." / "run", "output_dir"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_is_left_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "keys").write_text("of the user")
    (tmp_path / ".lock").symlink_to("keys")
    with pytest.raises(ConfigError, match=r"\.lock is a link"), alone(tmp_path, "output_dir"):
        pass
    assert (tmp_path / "keys").read_text() == "of the user"


def test_nothing_is_written_where_a_link_leads(tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "elsewhere", RunFolder.of(RunConfig(output_dir=tmp_path / "run"))
    elsewhere.mkdir()
    for place in (run.report, run.scores / "model" / "test", run.metrics, run.database):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(elsewhere)
        with (
            pytest.raises(ConfigError, match=f"output_dir: {place} is a link, and nothing is"),
            alone_in_run(RunConfig(output_dir=run.root)),
        ):
            pass
        place.unlink()
    run.shards.symlink_to(elsewhere)  # what is only read may lie anywhere, and so may the run
    (tmp_path / "link").symlink_to("run")
    with alone_in_run(RunConfig(output_dir=tmp_path / "link")):
        pass
    with (
        pytest.raises(ConfigError, match=f"shards_dir: {run.shards} is a link"),
        alone_in_shards(RunConfig(output_dir=run.root)),
    ):
        pass
    assert list(elsewhere.iterdir()) == []


def test_what_a_stranger_writes_into_a_lock_does_not_reach_the_terminal(tmp_path: Path) -> None:
    with written_by_another(tmp_path):
        (tmp_path / ".lock").write_text("\x1b[2Jx\n" * 10_000)
        with pytest.raises(StageError) as refused, alone(tmp_path, "output_dir"):
            pass
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1500


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for lock in (taken, wait_for):
        with (tmp_path / "file").open("w") as file, pytest.raises(StageError, match="/file: its"):
            lock(file)
    with pytest.raises(StageError, match=r"\.lock: its file system refuses locks") as refused:
        FileLock(tmp_path / ".lock").take("me")
    assert len(str(refused.value).splitlines()) == 1


def test_a_lock_whose_file_system_is_away_for_a_moment_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, really = [errno.EIO, errno.ESTALE], fcntl.flock

    def flock(file: Any, how: int) -> None:
        if answers:
            raise OSError(answers[0], os.strerror(answers.pop(0)))
        really(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(files, "AWAY_SECONDS", [0.01, 0.01])
    with alone(tmp_path, "output_dir"):
        assert answers == []
