"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from lasaft import files
from lasaft.errors import StageError
from lasaft.files import (
    atomic_path,
    atomic_paths,
    atomic_write_bytes,
    atomic_write_json,
    first_special,
    no_file,
    open_own,
    publish_folder,
    recover_folder,
)


def _sum(name: str) -> str:
    """Return what tells temporary files of one name from those of another."""
    return f"{zlib.crc32(os.fsencode(name)):08x}"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    atomic_write_bytes(target, b"old")
    with pytest.raises(RuntimeError, match="power cut"), atomic_path(target) as temporary:
        temporary.write_bytes(b"half of the ne")
        raise RuntimeError("power cut")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_files_of_ours_that_are_links_are_not_followed(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("of the user")
    link = tmp_path / "lock"
    link.symlink_to(keys)
    for mode in ("w", "a", "ab+", "r+"):
        with (
            pytest.raises(OSError, match="is a link, and nothing is written"),
            open_own(link, mode),
        ):
            pass
    temporary = f".lock.{_sum('lock')}.tmp-{os.getpid()}"
    (tmp_path / temporary).symlink_to(keys)
    atomic_write_bytes(link, b"ours")
    assert (link.read_bytes(), link.is_symlink()) == (b"ours", False)
    assert keys.read_text() == "of the user"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "lock"]


def test_several_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "folder" / "two"
    with atomic_paths([one, two]) as temporaries:
        for temporary in temporaries:
            temporary.write_bytes(b"first")
    assert (one.read_bytes(), two.read_bytes()) == (b"first", b"first")
    with pytest.raises(RuntimeError), atomic_paths([one, two]) as temporaries:
        temporaries[0].write_bytes(b"second")
        raise RuntimeError
    assert (one.read_bytes(), two.read_bytes()) == (b"first", b"first")
    two.unlink()
    two.mkdir()  # it cannot be replaced, which shows after the first file has been
    new = tmp_path / "new"
    with pytest.raises(IsADirectoryError), atomic_paths([new, two]) as temporaries:
        for temporary in temporaries:
            temporary.write_bytes(b"third")
    assert sorted(tmp_path.rglob("*")) == [two.parent, two, one]


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
    (tmp_path / f".checkpoint.{_sum('checkpoint')}.tmp-1").mkdir()  # what SIGKILL leaves
    recover_folder(folder)
    assert (folder / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_the_work_of_folders_and_files_with_longer_names_is_left_alone(tmp_path: Path) -> None:
    others = [
        tmp_path / f".m.v2.{_sum('m.v2')}.tmp-999", tmp_path / ".m.old-copy",
        tmp_path / f".[m].{_sum('[m]')}.tmp-999",
    ]  # fmt: skip
    for other in others:
        other.mkdir()
    half = tmp_path / f".m.wav.{_sum('m.wav')}.tmp-999"
    half.touch()
    recover_folder(tmp_path / "m")
    assert set(tmp_path.iterdir()) == {*others, half}
    recover_folder(tmp_path / "[m]")
    assert not others[-1].exists()


def test_an_error_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError) as found:
        atomic_write_bytes(tmp_path / "a", b"x")
    assert found.value.filename == str(tmp_path / "a")
    assert found.value.filename2 is None
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for mode in ("a", "r+", "ab+"):
        with pytest.raises(OSError, match="is a pipe, a socket or a device"):
            open_own(tmp_path / "pipe", mode)
    (tmp_path / "around").symlink_to(tmp_path)
    assert first_special([tmp_path / "none", tmp_path]) == tmp_path / "pipe"
    assert no_file(tmp_path / "pipe") == "is a pipe, a socket or a device"
    assert (no_file(tmp_path), no_file(tmp_path / "a")) == ("is a folder", "does not exist")
    (tmp_path / "pipe").unlink()
    assert first_special([tmp_path]) is None


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The answers of the file system to opening a file: an error each, then all is well."""
    answers: list[int] = []
    really = Path.open

    def open_(self: Path, *arguments: Any, **options: Any) -> Any:
        if answers:
            raise OSError(answers[0], os.strerror(answers.pop(0)), str(self))
        return really(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(files, "AWAY_SECONDS", [0.01, 0.01])
    return answers


@pytest.mark.parametrize("code", sorted(files.AWAY), ids=lambda code: errno.errorcode[code])
def test_a_file_system_that_is_away_is_tried_again(
    tmp_path: Path, away: list[int], code: int
) -> None:
    file = tmp_path / "a.json"
    away += [code, code]
    files.atomic_write_bytes(file, b'{"a": 1}')
    away += [code, code]
    assert files.read_json(file, {"a"}, "") == {"a": 1}
    away += [code]
    assert len(files.file_sha256(file)) == 64
    away += [code] * 3
    with pytest.raises(OSError, match=re.escape(str(file))) as caught:
        files.read_json(file, {"a"}, "")
    assert caught.value.errno == code
    away += [code] * 3
    with pytest.raises(OSError, match=r"a\.json"):
        files.atomic_write_bytes(file, b"{}")
    assert file.read_bytes() == b'{"a": 1}'
    assert list(tmp_path.iterdir()) == [file]


def test_other_faults_are_told_at_once(tmp_path: Path, away: list[int]) -> None:
    away += [errno.EACCES]
    with pytest.raises(StageError, match=r"a\.json: is damaged .*Permission denied"):
        files.read_json(tmp_path / "a.json", {"a"}, "")
    assert away == []


def test_a_read_that_fails_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(_: Path) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))  # as read() says it

    monkeypatch.setattr(Path, "read_bytes", stale)
    monkeypatch.setattr(files, "AWAY_SECONDS", [0.01])
    with pytest.raises(OSError, match=re.escape(f"handle: '{tmp_path / 'a'}'")):
        files.read_steadily(tmp_path / "a")
