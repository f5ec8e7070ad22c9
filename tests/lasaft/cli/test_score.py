"""The ``lasaft score`` command: museval's numbers and files, and its answers to bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import museval
import numpy as np
import pytest

from lasaft.cli import commands as cli
from tests.helpers.audio import RATE, files_of, noise, read, write

pytestmark = pytest.mark.usefixtures("empty_working_folder")

SCORED = ("bass", "vocals")


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Path, Path]:
    """Two tracks of three seconds, the estimates noisier from source to source."""
    for number, track in enumerate(("one", "two")):
        for index, source in enumerate(SCORED):
            truth = noise(2, 3 * RATE, seed=10 * number + index)
            guess = truth + noise(2, 3 * RATE, seed=99, scale=0.02 * (index + 1))
            write(tmp_path / "ref" / track / f"{source}.wav", truth)
            write(tmp_path / "est" / track / f"{source}.wav", guess)
        write(tmp_path / "ref" / track / "mixture.wav", noise(2, 3 * RATE))
    return tmp_path / "ref", tmp_path / "est"


def score(tmp_path: Path, *arguments: object) -> int:
    return cli.main(["score", *map(str, arguments), "--output_dir", str(tmp_path / "scores")])


def test_an_mp3_without_its_length_is_scored_whole_and_a_short_file_is_told(
    tmp_path: Path, scored: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    # The first second takes many bits, the others few: by the first frames, 6 s are but 2 or 3.
    truth = np.concatenate([noise(2, RATE, scale=0.3), noise(2, 5 * RATE, scale=1e-3)], axis=1)
    for place in ("ref", "est"):
        shutil.rmtree(tmp_path / place)
        write(tmp_path / place / "song" / "bass.wav", noise(2, 6 * RATE, seed=1))
    write(tmp_path / "ref" / "song" / "vocals.wav", truth)
    mp3 = write(tmp_path / "est" / "song" / "vocals.mp3", truth, bitrate_mode="VARIABLE")
    data = mp3.read_bytes()
    medians = []
    for tag in (b"Xing", bytes(4)):
        mp3.write_bytes(data.replace(b"Xing", tag))
        assert score(tmp_path, *scored, "--json") == 0
        medians.append(json.loads(capsys.readouterr().out)["tracks"]["song"]["vocals"])
    assert medians[0]["frames"] == medians[1]["frames"] == 6
    wav = tmp_path / "est" / "song" / "bass.wav"
    wav.write_bytes(wav.read_bytes()[:-8000])
    assert score(tmp_path, *scored) == 0
    assert "bass.wav: is cut short: 8000 bytes are missing at its end" in capsys.readouterr().err


def test_scores_are_not_written_where_a_link_leads(
    tmp_path: Path, scored: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in scored:
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        (tmp_path / "moved").rename(folder / "test")
    (tmp_path / "home").mkdir()
    (tmp_path / "scores").mkdir()
    link = tmp_path / "scores" / "test"
    link.symlink_to(tmp_path / "home")
    assert score(tmp_path, *scored) == 1
    assert f"{link}: is a link, and nothing is written" in capsys.readouterr().err
    assert list((tmp_path / "home").iterdir()) == []


def test_scores_are_musevals_in_musevals_schema(
    tmp_path: Path, scored: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    references, estimates = scored
    assert score(tmp_path, references, estimates, "--json") == 0
    table = json.loads(capsys.readouterr().out)["tracks"]
    assert list(table) == ["one", "two", "median"]
    assert files_of(tmp_path / "scores") == ["one.json", "two.json"]
    track = json.loads((tmp_path / "scores" / "one.json").read_text())
    names = [target["name"] for target in track["targets"]]
    assert sorted(names) == sorted(SCORED)
    stack = [np.stack([read(f / "one" / f"{n}.wav").T for n in names]) for f in scored]
    wanted = dict(
        zip(("SDR", "ISR", "SIR", "SAR"), museval.evaluate(stack[0], stack[1]), strict=True)
    )
    store = museval.TrackStore("one")
    for row, name in enumerate(names):
        store.add_target(name, {metric: values[row] for metric, values in wanted.items()})
        for metric, values in wanted.items():
            assert table["one"][name][metric] == pytest.approx(np.median(values[row]), abs=1e-6)
    # The same numbers after rounding, and the same keys.
    theirs = json.loads(store.json)
    assert _rounded(track) == _rounded(theirs)
    store.scores = track
    store.validate()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    # Two roundings to 5 digits of numbers that differ by 1e-9 may fall on both sides.
    return round(value, 4) if isinstance(value, float) else value


def test_one_folder_of_references_is_one_track(
    tmp_path: Path, scored: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    references, estimates = scored
    assert score(tmp_path, references / "two", estimates / "two") == 0
    assert files_of(tmp_path / "scores") == ["two.json"]
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == [
        "track", "source", "SDR", "ISR", "SIR", "SAR", "frames", "NaN",
    ]  # fmt: skip
    assert "dB, median over frames of 1 s" in err


def test_estimates_of_another_length_are_fitted_and_said(
    tmp_path: Path, scored: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    references, estimates = scored
    short, long = (estimates / "one" / f"{name}.wav" for name in ("bass", "vocals"))
    write(short, read(short)[:, :-RATE])
    write(long, np.concatenate((read(long), noise(2, 100)), axis=1))
    assert score(tmp_path, references / "one", estimates / "one") == 0
    out, err = capsys.readouterr()
    assert "bass.wav: has 88200 samples instead of 132300, was continued with silence" in err
    assert "vocals.wav: has 132400 samples instead of 132300, was cut" in err
    frames = json.loads((tmp_path / "scores" / "one.json").read_text())["targets"][0]["frames"]
    # One of the three frames has no scores; it is counted, and not in the medians.
    assert [line.split()[-2:] for line in out.splitlines()[1:]] == [["3", "1"], ["3", "1"]]
    # museval: a frame in which an estimate is silent has no scores.
    assert [np.isnan(frame["metrics"]["SDR"]) for frame in frames] == [False, False, True]


def test_folders_of_splits_are_scored_as_museval_lays_them_out(
    tmp_path: Path, scored: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in scored:
        (folder / "test").mkdir()
        (folder / "one").rename(folder / "test" / "one")
        shutil.rmtree(folder / "two")
    assert score(tmp_path, *scored) == 0
    assert files_of(tmp_path / "scores") == ["test/one.json"]
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "test/one"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda e: (e / "bass.wav").unlink(), "one: has no estimate of bass"),
        (shutil.rmtree, "one: has no estimate of bass, vocals"),
        (lambda e: write(e / "bass.wav", noise(1, 99)), "bass.wav: has 1 channels, "),
        (
            lambda e: write(e / "bass.wav", noise(2, 99), 8000),
            "bass.wav: has a sample rate of 8000",
        ),
        (lambda e: write(e / "bass.wav", noise(2, 99) / 0), "bass.wav: holds a value that is not"),
        (lambda e: (e / "bass.wav").write_text("words"), "bass.wav: is not an audio file"),
        (lambda e: write(e / "bass.wav", 0 * noise(2, 3 * RATE)), "one: "),
    ],
)
def test_a_track_that_cannot_be_scored_is_named_and_the_others_are_scored(
    tmp_path: Path,
    scored: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    damage: Any,
    message: str,
) -> None:
    references, estimates = scored
    with np.errstate(divide="ignore"):
        damage(estimates / "one")
    assert score(tmp_path, references, estimates) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "1 of 2 tracks were scored, 1 failed" in err
    assert files_of(tmp_path / "scores") == ["two.json"]


def test_folders_without_references_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert score(tmp_path, tmp_path / "none", tmp_path / "empty") == 1
    assert "none: there is no such folder" in capsys.readouterr().err
    assert score(tmp_path, tmp_path / "empty", tmp_path / "empty") == 1
    assert "empty: holds no references" in capsys.readouterr().err
