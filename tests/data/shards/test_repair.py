"""``jobs.preprocess --verify`` and ``--repair``: damage is named, and built again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli import parse
from jobs.preprocess import main
from lasaft.errors import ConfigError
from pipeline.cluster.connection import connected
from pipeline.config import ClusterConfig
from tests.helpers.shards import make_shards, small_config
from tests.helpers.wavs import write_track


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with connected(ClusterConfig(num_cpus=1)):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs (one is two shards) and their shards."""
    root = tmp_path_factory.mktemp("repair")
    for name, seconds in (("long", 4.0), ("short", 0.5)):
        write_track(root / "songs" / "train" / name, seconds=seconds)
    config = small_config(root / "songs", root)
    data = config.data.model_copy(update={"max_frames_per_shard": 512})
    make_shards(config.model_copy(update={"data": data}))
    return root


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "shards", tmp_path / "shards")
    return tmp_path / "shards"


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def _repair(folder: Path, whole: Path, *words: str) -> int:
    songs = str(whole / "songs")
    return main(["--repair", "--shards_dir", str(folder), "--musdb_root", songs, *words])


def test_sound_shards_need_no_songs_to_be_verified(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--verify", "--repair"):
        assert main([flag, "--shards_dir", str(folder)]) == 0
        assert f"3 shards, 0.01 GB in {folder}: every byte is right" in capsys.readouterr().out


def test_each_damaged_file_is_named_with_what_to_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _flip(folder / "train" / "long.001.arrow", 70_000)
    (folder / "train" / "short.000.arrow").write_bytes(b"short")
    (folder / "train" / "long.000.json").write_text("{")
    assert main(["--verify", "--shards_dir", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 damaged files")
    size = json.loads((folder / "train" / "short.000.json").read_text())["shard"]["size_bytes"]
    assert lines[1:4] == [
        "  train/long.001.arrow: its sha256 is not the recorded one",
        f"  train/short.000.arrow: has 5 bytes; {size} are recorded",
        "  train/long.000.json: is damaged, or another shard's",
    ]
    assert lines[4].startswith(f"run: python -m jobs.preprocess --repair --shards_dir {folder}")


def test_a_repair_builds_the_damaged_shards_alone_to_the_same_bytes(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victims = ["train/long.001.arrow", "train/short.000.arrow"]
    _flip(folder / victims[0], 70_000)
    (folder / victims[1]).unlink()
    others = list(folder.glob("*/long.000.*"))
    times = [path.stat().st_mtime_ns for path in others]
    assert _repair(folder, whole, "--json") == 0
    assert json.loads(capsys.readouterr().out)["repaired"] == victims
    assert _contents(folder) == _contents(whole / "shards")
    assert [path.stat().st_mtime_ns for path in others] == times
    assert main(["--verify", "--shards_dir", str(folder)]) == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "hash", "spelling", "and a record"])
def test_a_damaged_manifest_comes_back_byte_for_byte(
    folder: Path, whole: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    if damage == "cut":
        manifest.write_text(text[: len(text) // 2])
    elif damage == "spelling":  # the same for every reader of JSON
        manifest.write_text(text.replace('"n_fft": 512', '"n_fft":  512'))
    else:
        _flip(manifest, 20 if damage == "hash" else text.index('"peak":0.') + 9)
    if damage == "and a record":
        (folder / "train" / "short.000.json").write_text("{}")
    assert main(["--verify", "--shards_dir", str(folder)]) == 1
    assert "  manifest.json: is damaged" in capsys.readouterr().out
    assert _repair(folder, whole) == 0
    assert _contents(folder) == _contents(whole / "shards")


def test_a_shard_lost_with_its_record_and_the_manifest_comes_back(
    folder: Path, whole: Path
) -> None:
    for file in folder.glob("train/long.001.*"):
        file.unlink()
    _flip(folder / "manifest.json", 20)
    assert _repair(folder, whole) == 0
    assert _contents(folder) == _contents(whole / "shards")


def test_a_lost_track_is_not_passed_over_where_the_manifest_is_damaged(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in folder.glob("train/short*"):
        file.unlink()
    _flip(folder / "manifest.json", 300)
    assert _repair(folder, whole) == 1
    assert "tracks may be lost; run python -m jobs.preprocess" in capsys.readouterr().err


def test_changed_songs_do_not_pass_for_the_old_ones(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "songs", tmp_path / "songs")
    _flip(tmp_path / "songs" / "train" / "short" / "bass.wav", 1000)
    victim = folder / "train" / "short.000.arrow"
    _flip(victim, 5000)
    damaged = victim.read_bytes()
    assert _repair(folder, tmp_path) == 1
    assert "its sha256 is not the recorded one (changed songs" in capsys.readouterr().err
    assert victim.read_bytes() == damaged
    shutil.rmtree(tmp_path / "songs" / "train" / "short")
    assert _repair(folder, tmp_path) == 1
    assert "holds no track train/short" in capsys.readouterr().err


def test_without_a_manifest_there_is_nothing_to_verify(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "manifest.json").unlink()
    assert main(["--verify", "--shards_dir", str(folder)]) == 1
    assert _repair(folder, whole) == 1
    assert "there is no manifest.json; run: python -m jobs.preprocess" in capsys.readouterr().err


def test_the_flags_are_in_the_help_and_no_options_apply_that_do_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "  --verify  " in text
    assert "  --repair  " in text
    assert main(["--verify", "--n_fft", "4096"]) == 2
    said = capsys.readouterr().err
    assert "n_fft: has no effect in jobs.preprocess --verify; leave it out" in said


@pytest.mark.parametrize("job", ["run", "train", "evaluate", "report", "doctor"])
def test_other_jobs_refuse_the_flags(job: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["--repair", "--verify"], job)
    problems = map(str, caught.value.problems)
    lines = [line for line in problems if line.startswith(("repair", "verify"))]
    assert lines[0] == (
        f"repair: is a flag of jobs.preprocess, and has no effect in jobs.{job}; leave it out"
    )
    is_option = job in ("run", "evaluate", "doctor")
    assert ("a value is missing" if is_option else "is a flag of jobs.preprocess") in lines[1]


def test_a_stale_manifest_is_told_from_damaged_shards(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(whole / "songs", folder.parent / "old")
    data = config.data.model_copy(update={"max_frames_per_shard": 512})
    shutil.copytree(whole / "songs", folder.parent / "songs")
    _flip(folder.parent / "songs" / "train" / "short" / "bass.wav", 1001)
    data = data.model_copy(update={"musdb_root": folder.parent / "songs"})
    make_shards(config.model_copy(update={"data": data}))
    shutil.copy(folder.parent / "old" / "shards" / "manifest.json", folder / "manifest.json")
    assert main(["--verify", "--shards_dir", str(folder)]) == 1
    assert (
        "manifest.json: is stale: train/short.000.arrow and its record agree"
        in capsys.readouterr().out
    )
    assert _repair(folder, whole) == 1
    assert "run python -m jobs.preprocess with the options" in capsys.readouterr().err
