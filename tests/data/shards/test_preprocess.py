"""The stage as a whole, on Ray: any number of workers, faults, interruption, repair."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from lasaft.errors import ConfigError, DataError, StageError
from pipeline.cluster.connection import connected
from pipeline.config import ClusterConfig, RunConfig
from pipeline.data.shards import preprocess as stage
from pipeline.data.shards.build import Work, build_shards, file_stem
from pipeline.data.shards.inspect import inspect_shards
from pipeline.data.shards.manifest import Manifest, ShardSettings, read_manifest
from pipeline.data.shards.preprocess import preprocess
from pipeline.data.songs.tracks import Track, list_tracks
from pipeline.data.songs.wanted import Wanted
from tests.helpers import ROOT
from tests.helpers.processes import written_by_another
from tests.helpers.shards import make_shards, small_config
from tests.helpers.songs import make_musdb
from tests.helpers.wavs import write_track


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with connected(ClusterConfig(num_cpus=2)):
        yield


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_musdb(
        tmp_path_factory.mktemp("set") / "songs", train=2, valid=1, test=1, seconds=2.0
    )


def _with(config: RunConfig, part: str, **values: Any) -> RunConfig:
    return config.model_copy(update={part: getattr(config, part).model_copy(update=values)})


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def _only(manifest: Manifest, split: str) -> str:
    (track,) = manifest.split(split)
    return track.name


def test_ray_builds_what_one_process_builds_byte_for_byte(tmp_path: Path, songs: Path) -> None:
    with_ray = preprocess(small_config(songs, tmp_path / "ray"))
    alone = make_shards(small_config(songs, tmp_path / "alone"))
    assert with_ray.hash == alone.hash
    contents = _contents(tmp_path / "ray" / "shards")
    assert contents == _contents(tmp_path / "alone" / "shards")
    assert sum(name.endswith(".arrow") for name in contents) == 4
    assert [len(with_ray.split(split)) for split in ("train", "valid", "test")] == [2, 1, 1]
    assert inspect_shards(tmp_path / "ray" / "shards").faults == ()


def test_a_second_run_touches_nothing(tmp_path: Path, songs: Path) -> None:
    config = small_config(songs, tmp_path)
    first = preprocess(config)
    files = [path for path in (tmp_path / "shards").rglob("*") if path.name != ".lock"]
    times = {path: path.stat().st_mtime_ns for path in files if path.is_file()}
    assert preprocess(config) == first
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "record", "manifest"])
def test_only_what_is_damaged_is_rebuilt(tmp_path: Path, songs: Path, damage: str) -> None:
    config, folder = small_config(songs, tmp_path), tmp_path / "shards"
    first = preprocess(config)
    whole = _contents(folder)
    victim, *others = sorted(folder.glob("*/*.arrow"))
    data = victim.read_bytes()
    if damage == "flip":
        victim.write_bytes(data[:5000] + bytes([data[5000] ^ 4]) + data[5001:])
    elif damage == "truncate":
        victim.write_bytes(data[:-1])
    elif damage == "remove":
        victim.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text('{"settings": {"format": 1}}')
    else:
        next(victim.parent.glob("*.json")).write_text("{")
    times = [path.stat().st_mtime_ns for path in others]
    assert preprocess(config) == first
    assert _contents(folder) == whole
    assert [path.stat().st_mtime_ns for path in others] == times


def test_changed_audio_is_noticed(tmp_path: Path, songs: Path) -> None:
    own = tmp_path / "songs"
    shutil.copytree(songs, own)
    config = small_config(own, tmp_path)
    first = preprocess(config)
    file = own / "test" / _only(first, "test") / "bass.wav"
    audio, rate = soundfile.read(str(file), dtype="int16")
    audio[100, 0] ^= 1
    soundfile.write(str(file), audio, rate, subtype="PCM_16")
    second = preprocess(config)
    assert second.hash != first.hash
    assert second.split("train") == first.split("train")
    assert inspect_shards(tmp_path / "shards").faults == ()


def test_dev_mode_takes_one_track_a_split_and_the_rest_can_follow(
    tmp_path: Path, songs: Path
) -> None:
    config = small_config(songs, tmp_path)
    small = preprocess(_with(config, "data", dev_mode=True))
    assert [len(small.split(split)) for split in ("train", "valid", "test")] == [1, 1, 1]
    assert len(preprocess(config).tracks) == 4


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path, songs: Path) -> None:
    config = small_config(songs, tmp_path)
    preprocess(config)
    before = _contents(tmp_path / "shards")
    changed = _with(config, "model", n_fft=1024, hop_length=512)
    message = r"n_fft: got 1024; the shards in .* were made with 512; choose another shards_dir"
    with pytest.raises(ConfigError, match=message) as caught:
        preprocess(changed)
    assert len(caught.value.problems) == 2
    (tmp_path / "shards" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=message):
        preprocess(changed)
    del before["manifest.json"]
    assert _contents(tmp_path / "shards") == before


def test_a_faulty_track_stops_the_stage_before_any_work(tmp_path: Path, songs: Path) -> None:
    own = tmp_path / "songs"
    shutil.copytree(songs, own)
    sorted(own.glob("train/*/drums.wav"))[0].unlink()
    with pytest.raises(DataError, match=r"1 fault in the tracks:\n  .*: drums\.wav is missing"):
        preprocess(small_config(own, tmp_path))
    assert not (tmp_path / "shards").exists()


def test_a_track_that_fails_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    own = tmp_path / "songs"
    for name in ("good", "bad", "also good"):
        write_track(own / "train" / name, seconds=7)
    bad = own / "train" / "bad"
    audio, rate = soundfile.read(str(bad / "other.wav"), dtype="int16")
    (bad / "other.wav").unlink()
    soundfile.write(str(bad / "other.flac"), audio, rate)
    data = bytearray((bad / "other.flac").read_bytes())
    data[-60_000:-50_000] = bytes(10_000)  # behind what the check listens to
    (bad / "other.flac").write_bytes(data)
    config = small_config(own, tmp_path)
    with pytest.raises(StageError, match=r"train/bad: other\.flac is damaged after") as caught:
        preprocess(config)
    assert "1 of 3" in str(caught.value)
    assert str(caught.value).count("train/bad") == 1
    shards = tmp_path / "shards"
    assert not (shards / "manifest.json").exists()
    assert sorted(path.name for path in shards.glob("*/*")) == [
        "also good.000.arrow", "also good.000.json", "good.000.arrow", "good.000.json",
    ]  # fmt: skip
    times = {path: path.stat().st_mtime_ns for path in shards.glob("*/*")}
    soundfile.write(str(bad / "other.flac"), audio, rate)
    assert len(preprocess(config).tracks) == 3
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_long_track_is_built_by_several_tasks_to_the_same_bytes(tmp_path: Path) -> None:
    write_track(tmp_path / "songs" / "train" / "long", seconds=7)
    config = _with(
        small_config(tmp_path / "songs", tmp_path / "a"), "data", max_frames_per_shard=512
    )
    alone = make_shards(config.model_copy(update={"output_dir": tmp_path / "b"}))
    assert len(preprocess(config).tracks[0].shards) == 3
    assert preprocess(config).hash == alone.hash
    assert _contents(tmp_path / "a" / "shards") == _contents(tmp_path / "b" / "shards")


def test_two_runs_at_once_are_refused(tmp_path: Path, songs: Path) -> None:
    with (
        written_by_another(tmp_path / "shards"),
        pytest.raises(StageError, match=r"shards_dir: .*shards is in use by .*on node7 since"),
    ):
        preprocess(small_config(songs, tmp_path))


def test_a_shard_folder_that_cannot_be_made_is_refused(tmp_path: Path, songs: Path) -> None:
    (tmp_path / "shards").write_text("a file")
    with pytest.raises(ConfigError, match=r"shards_dir: cannot write in .*shards \(File exists\)"):
        preprocess(small_config(songs, tmp_path))
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read \(Not a directory\)"):
        read_manifest(tmp_path / "shards")


def test_leftovers_of_killed_tasks_are_removed(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, meanwhile = (tmp_path / "shards" / "train" / f".x.000.arrow.tmp-{n}" for n in (1, 2))
    before.parent.mkdir(parents=True)
    before.write_bytes(b"half")
    staged = tmp_path / "shards" / ".repair" / "train"
    staged.mkdir(parents=True)

    def run_tasks(*arguments: Any, **more: Any) -> list[Any]:
        assert not before.exists()
        meanwhile.write_bytes(b"half")
        return real(*arguments, **more)

    real = stage.run_tasks
    monkeypatch.setattr(stage, "run_tasks", run_tasks)
    preprocess(small_config(songs, tmp_path))
    assert not meanwhile.exists()
    assert not staged.parent.exists()


def test_too_small_a_disk_is_said_before_any_work(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StageError, match=r"the shards need 0\.01 GB, 0\.00 GB are free"):
        preprocess(small_config(songs, tmp_path))
    assert not list((tmp_path / "shards").glob("*/*"))


def _track(songs: Path) -> Track:
    return list_tracks(songs, Wanted(("vocals", "drums", "bass", "other")))[0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_told_from_a_fault(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    written = 0

    def write(file: Any, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > 2_000_000:
            raise OSError(code, os.strerror(code))
        return len(data)

    monkeypatch.setattr("pipeline.data.shards.format._HashingFile.write", write)
    settings = ShardSettings.of(small_config(songs, tmp_path))
    outcome = build_shards(Work(_track(songs), settings, tmp_path / "shards"))
    assert outcome.records is None
    assert _contents(tmp_path / "shards") == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a small disk")
def test_a_full_disk_is_one_clear_error_and_the_run_goes_on(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr(stage, "_require_space", lambda *args: None)
        config = small_config(songs, disk)
        with pytest.raises(StageError, match=r"the disk is full at (train|valid|test)/.*goes on"):
            preprocess(config)
        assert not (disk / "shards" / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert preprocess(config).hash == make_shards(small_config(songs, tmp_path / "b")).hash
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_task_that_asks_for_more_memory_than_there_is_is_refused(
    tmp_path: Path, songs: Path
) -> None:
    config = small_config(songs, tmp_path)
    with pytest.raises(ConfigError, match=r"a task needs 1 CPU, 1e\+06 GB of memory; .* has"):
        preprocess(_with(config, "cluster", task_memory=1e6))


def test_a_very_long_name_gets_a_file_of_its_own(tmp_path: Path) -> None:
    names = ["가" * 80 + end for end in "ab"]
    for name in names:
        write_track(tmp_path / "songs" / "train" / name, seconds=0.5)
    manifest = make_shards(small_config(tmp_path / "songs", tmp_path))
    assert [track.name for track in manifest.tracks] == names
    assert len({file_stem(name) for name in names}) == 2
    assert file_stem("short & sweet. ") == "short & sweet. "
    assert inspect_shards(tmp_path / "shards").faults == ()


_SCRIPT = """
import sys
from pathlib import Path
from pipeline.data.shards import build
from pipeline.data.shards.manifest import ShardSettings
from tests.helpers.shards import make_shards, small_config
make_shards(small_config(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path, songs: Path) -> None:
    whole = tmp_path / "whole"
    make_shards(small_config(songs, whole))
    root, killed = ROOT, tmp_path / "killed"
    command = [sys.executable, "-c", _SCRIPT, str(songs), str(killed)]
    process = subprocess.Popen(command, cwd=root)
    deadline = time.monotonic() + 60
    while not list(killed.glob("shards/*/.*.tmp-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "shards" / "manifest.json").exists()
    preprocess(small_config(songs, killed))
    assert _contents(killed / "shards") == _contents(whole / "shards")
    assert read_manifest(killed / "shards").hash == read_manifest(whole / "shards").hash
