"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lasaft.files import (
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    publish_folder,
    recover_folder,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    atomic_write_bytes(target, b"old")
    with pytest.raises(RuntimeError, match="power cut"), atomic_path(target) as temporary:
        temporary.write_bytes(b"half of the ne")
        raise RuntimeError("power cut")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_written_as_people_read_it(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "deep" / "names.json", {"titel": "Größe", "n": [1, 2]})
    text = (tmp_path / "deep" / "names.json").read_text()
    assert json.loads(text) == {"titel": "Größe", "n": [1, 2]}
    assert "Größe" in text


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 255)
    atomic_write_bytes(target, b"whole")
    assert target.read_bytes() == b"whole"


def test_a_published_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    for version in ("one", "two"):
        with publish_folder(folder) as fresh:
            (fresh / version).write_text(version)
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_publication_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    with publish_folder(folder) as fresh:
        (fresh / "weights").write_text("old")
    with pytest.raises(RuntimeError, match="out of memory"), publish_folder(folder) as fresh:
        (fresh / "weights").write_text("new")
        raise RuntimeError("out of memory")
    assert (folder / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("renames", [0, 1])
def test_a_crash_inside_a_publication_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    folder = tmp_path / "checkpoint"
    with publish_folder(folder) as fresh:
        (fresh / "weights").write_text("old")
    count = 0
    replace = Path.replace

    def crashing(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > renames:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crashing)
        with pytest.raises(KeyboardInterrupt), publish_folder(folder) as fresh:
            (fresh / "weights").write_text("new")
    (tmp_path / ".checkpoint.0000.tmp-1").mkdir()  # what SIGKILL leaves
    recover_folder(folder)
    assert (folder / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]
