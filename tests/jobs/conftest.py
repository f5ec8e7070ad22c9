"""Folders of songs that a command line can name."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def songs(tmp_path: Path) -> str:
    """An empty folder."""
    folder = tmp_path / "musdb"
    folder.mkdir()
    return str(folder)


@pytest.fixture
def readme_songs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The README's ``../repos/musdb18_wav``, seen from the working folder."""
    folder = tmp_path / "repos" / "musdb18_wav"
    folder.mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder
