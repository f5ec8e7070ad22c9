"""Folders with names too long for sockets, and those that cannot be written, are told before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lasaft.errors import ConfigError
from pipeline.cluster import machine
from pipeline.cluster.machine import LONGEST_FOLDER, prepare_machine

NOWHERE = "/proc/nowhere"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_ray_keeps_away_from_a_long_tmpdir_and_uses_a_short_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_USUAL_FOLDER", str(tmp_path / "usual"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * LONGEST_FOLDER)))
    prepare_machine()
    assert os.environ["RAY_TMPDIR"] == str(tmp_path / "usual")


def test_a_tmpdir_that_is_short_enough_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    # Up to the last byte: a socket there can be opened.
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * (LONGEST_FOLDER - 5))
    try:
        prepare_machine()
    finally:
        Path(os.environ["TMPDIR"]).rmdir()
    assert "RAY_TMPDIR" not in os.environ


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("RAY_TMPDIR", "/tmp/" + "x" * 99, f"a name of {LONGEST_FOLDER} bytes at most"),
        ("RAY_TMPDIR", NOWHERE, r"cannot write there \(No such file or directory\)"),
        ("TMPDIR", NOWHERE, r"cannot write there \(No such file or directory\)"),
        ("HOME", NOWHERE, r"cannot write there \(No such file or directory\)"),
    ],
)
def test_the_variable_in_the_way_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"^{name}: got '{value}.*{told}") as refused:
        prepare_machine()
    assert len(str(refused.value).splitlines()) == 1


def test_a_home_that_ray_does_not_need_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    tmp_path.chmod(0o500)
    prepare_machine()
    tmp_path.chmod(0o700)
    monkeypatch.setenv("HOME", NOWHERE)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 32)
    prepare_machine()
