"""Folders at addresses as folders of this machine: names at once, contents for who needs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import parse
from lasaft.errors import ConfigError, DataError
from pipeline.cluster.inputs import InputFolder
from pipeline.cluster.parcels import parcel
from pipeline.cluster.run_store import RunStore
from pipeline.config import DataConfig, EvaluateConfig, RunConfig
from pipeline.config.folders import Input, RunFolder, as_given
from tests.helpers.object_store import (
    address,
    delete_object,
    put_object,
)

_SONG_BYTES = 2 << 20


@pytest.fixture
def place(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of three songs and a list; this machine has no copies yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = address(f"{tmp_path.name}/music", port)
    for number, name in enumerate(("a", "b", "c")):
        put_object(place, f"train/{name}/vocals.wav", bytes([number]) * _SONG_BYTES)
        put_object(place, f"train/{name}/bass.wav", b"bass")
    put_object(place, "splits.yaml", b"train: [a]")
    put_object(place, "train/a/metadata.yaml", b"stems: {}")
    return place


def _source(place: str, limit_songs: float = 100, option: str = "musdb_root") -> Input:
    size = limit_songs * _SONG_BYTES / 1e9
    config = RunConfig(data=DataConfig(musdb_root=place, cache_gb=size))
    if option != "musdb_root":
        config = RunConfig(evaluate=EvaluateConfig.model_validate({option: place}))
    (source,) = RunFolder.of(config).inputs
    return source


def _has(root: Path, name: str) -> bool:
    return (root / name).stat().st_mode & 0o777 != 0


def test_a_listed_folder_has_all_names_and_the_content_of_lists_alone(place: str) -> None:
    source = _source(place)
    InputFolder(source).list()
    assert source.root.name == "music"
    found = sorted(path for path in source.root.rglob("*") if path.is_file())
    assert len(found) == 8
    assert (source.root / "splits.yaml").read_text() == "train: [a]"
    assert (source.root / "train" / "a" / "metadata.yaml").read_text() == "stems: {}"
    song = source.root / "train" / "a" / "vocals.wav"
    assert song.stat().st_size == _SONG_BYTES
    assert not _has(source.root, "train/a/vocals.wav")
    with InputFolder(source).at_hand(["train/b"]):
        assert (source.root / "train" / "b" / "vocals.wav").read_bytes() == b"\1" * _SONG_BYTES
        assert not _has(source.root, "train/a/vocals.wav")
    times = {path: path.stat().st_mtime_ns for path in found}
    InputFolder(source).list()
    assert times == {path: path.stat().st_mtime_ns for path in found}
    assert _has(source.root, "train/b/vocals.wav")


def test_what_changes_in_the_store_changes_here(place: str) -> None:
    source = _source(place)
    InputFolder(source).list()
    with InputFolder(source).at_hand(["train/a", "train/c/bass.wav"]):
        assert (source.root / "train/c/bass.wav").read_bytes() == b"bass"
    put_object(place, "train/a/bass.wav", b"another")
    for name in ("vocals", "bass"):
        delete_object(place, f"train/b/{name}.wav")
    InputFolder(source).list()
    assert not (source.root / "train" / "b").exists()
    assert _has(source.root, "train/a/vocals.wav")
    assert not _has(source.root, "train/a/bass.wav")
    with InputFolder(source).at_hand(["train/a"]):
        assert (source.root / "train/a/bass.wav").read_bytes() == b"another"


def test_the_songs_used_last_are_kept_and_those_in_use(place: str) -> None:
    source = _source(place, limit_songs=2.5)
    InputFolder(source).list()
    folder = InputFolder(source)
    (source.root.parent / "held" / "of-a-task-that-begins").touch()
    kept = {}
    with folder.at_hand(["train/a"]):
        for name in ("b", "c"):
            with folder.at_hand([f"train/{name}"]):
                kept[name] = [one for one in "abc" if _has(source.root, f"train/{one}/vocals.wav")]
    assert kept == {"b": ["a", "b"], "c": ["a", "c"]}
    held = source.root / "train" / "b" / "vocals.wav"
    assert held.stat().st_size == _SONG_BYTES
    assert held.stat().st_blocks == 0


def test_an_object_that_changes_while_it_is_fetched_is_told(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = InputFolder(_source(place))
    listed = folder._listed

    def old(name: str) -> object:
        there = listed(name)
        put_object(place, "train/a/vocals.wav", b"short")
        return there

    monkeypatch.setattr(folder, "_listed", old)
    message = r"train/a/vocals\.wav: changed while it was read"
    with pytest.raises(DataError, match=message), folder.at_hand(["train/a"]):
        raise AssertionError("it was not there as it was seen")


def test_an_address_with_nothing_at_it_is_told(place: str) -> None:
    with pytest.raises(ConfigError, match=r"^musdb_root: nothing lies at s3://bucket/\S+/nothing;"):
        InputFolder(_source(place.replace("/music", "/nothing"))).list()


def test_a_checkpoint_is_copied_whole(place: str) -> None:
    put_object(place, "weights.safetensors", b"w" * _SONG_BYTES)
    source = _source(place, option="checkpoint")
    InputFolder(source).list()
    assert (source.root / "weights.safetensors").read_bytes() == b"w" * _SONG_BYTES
    assert _has(source.root, "train/a/vocals.wav")


def test_a_task_gets_its_song_also_where_the_run_is_a_folder(place: str, tmp_path: Path) -> None:
    config = RunConfig(output_dir=tmp_path / "run", data=DataConfig(musdb_root=place))
    folder = RunFolder.of(config)
    (source,) = folder.inputs
    InputFolder(source).list()
    assert parcel(folder, reads=[tmp_path / "run" / "scores"]) is None
    sent = parcel(folder, reads=[folder.songs / "train" / "b"], files=[folder.config])
    assert sent is not None
    result, changed = sent.do((folder.songs / "train/b/bass.wav").read_bytes)
    assert (result, changed) == (b"bass", {})
    assert RunStore(folder).remote is None


def test_messages_name_the_address(place: str) -> None:
    config = RunConfig(data=DataConfig(musdb_root=place))
    songs = RunFolder.of(config).songs
    assert as_given(f"{songs}/train: no") == f"{place.partition('?')[0]}/train: no"


def test_a_job_lists_what_it_reads_and_refuses_what_is_not_there(place: str) -> None:
    command = parse(["--musdb_root", place, "--shards_dir", "/s"], "preprocess")
    songs = RunFolder.of(command.config).songs
    assert sorted(path.name for path in songs.iterdir()) == ["splits.yaml", "train"]
    nothing = place.replace("/music", "/nothing")
    with pytest.raises(ConfigError, match=r"^estimates_dir: nothing lies at"):
        parse(["--musdb_root", place, "--estimates_dir", nothing], "evaluate")
    with pytest.raises(ConfigError, match=r"checkpoint: \S+ is no checkpoint"):
        parse(["--musdb_root", place, "--checkpoint", place], "evaluate")
