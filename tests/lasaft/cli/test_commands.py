"""The ``lasaft`` command: separate and import-checkpoint, and its answers to bad input."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from lasaft.checkpoint import load_checkpoint, save_checkpoint
from lasaft.cli import commands as cli
from lasaft.cli.console import print_table
from lasaft.cli.separate import SeparateOptions
from lasaft.errors import ConfigError
from lasaft.files import safe_name
from lasaft.separation import stems
from lasaft.separation.separator import Separator
from lasaft.separation.stems import plan_files
from tests.helpers import ROOT
from tests.helpers.audio import RATE, files_of, noise, read, tiny_model, tone, write
from tests.helpers.lightning import Running, lightning_content
from tests.helpers.parity import Fixture

pytestmark = pytest.mark.usefixtures("empty_working_folder")

SOURCES = ("vocals", "drums", "bass", "other")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "checkpoint"
    model = tiny_model()
    save_checkpoint(folder, model.state_dict(), model.config, {})
    return folder


def separate(checkpoint: Path, output: Path, *arguments: object) -> int:
    options = ["--checkpoint", checkpoint, "--output_dir", output]
    return cli.main(["separate", *map(str, (*arguments, *options))])


# --- separate -----------------------------------------------------------------------------------


def test_separate_writes_what_the_library_gives(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = noise(2, 30_000)
    song = write(tmp_path / "song.wav", audio)
    assert separate(checkpoint, tmp_path / "out", song) == 0
    assert files_of(tmp_path / "out") == sorted(f"song/{source}.wav" for source in SOURCES)
    wanted = Separator(tiny_model()).separate(audio, RATE)
    for source in SOURCES:
        stem = tmp_path / "out" / "song" / f"{source}.wav"
        assert soundfile.info(stem).subtype == "FLOAT"
        # Where weights lie in memory can change the last bit of a convolution.
        assert np.allclose(read(stem), wanted[source], atol=1e-6)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    peak = f"{wanted['vocals'].abs().max():.3f}"
    assert lines[0] == ["file", "seconds", "peak"]
    assert lines[1] == [str(tmp_path / "out" / "song" / "vocals.wav"), "0.7", peak]


def test_every_option_of_separate_does_something(tmp_path: Path, checkpoint: Path) -> None:
    song = write(tmp_path / "song.flac", noise(2, 30_000), subtype="PCM_24")
    audio = read(song)

    def run(*options: object) -> np.ndarray:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert separate(checkpoint, tmp_path / "out", song, "--targets", "drums", *options) == 0
        assert files_of(tmp_path / "out") == ["song/drums.wav"]
        return read(tmp_path / "out" / "song" / "drums.wav")

    model = tiny_model()
    plain = run()
    # Where weights lie in memory can change the last bit of a convolution.
    assert np.allclose(plain, Separator(model).separate(audio, RATE)["drums"], atol=1e-6)
    without = Separator(model, 0.0).separate(audio, RATE)["drums"].numpy()
    assert np.allclose(run("--overlap_ratio", 0), without, atol=1e-6)
    assert not np.allclose(without, plain, atol=1e-5)
    assert 1e-4 < np.abs(run("--precision", "bf16") - plain).max() < 1
    assert np.allclose(run("--batch_size", 2), plain, atol=1e-6)
    assert np.allclose(run("--device", "cpu"), plain, atol=1e-6)
    assert np.allclose(run("--bits", "16"), np.clip(plain, -1, 1), atol=2**-15)


def test_sets_of_sources_are_targets(tmp_path: Path, checkpoint: Path) -> None:
    song = write(tmp_path / "song.wav", noise(2, 9000))
    assert separate(checkpoint, tmp_path / "a", song, "--targets", "vocals+bass,drums") == 0
    assert files_of(tmp_path / "a") == ["song/drums.wav", "song/vocals+bass.wav"]
    both = read(tmp_path / "a" / "song" / "vocals+bass.wav")
    words = ["--two_stems", "other+drums", "--other_method", "add"]
    assert separate(checkpoint, tmp_path / "b", song, *words) == 0
    assert np.allclose(read(tmp_path / "b" / "song" / "no_other+drums.wav"), both, atol=1e-6)


@pytest.mark.parametrize("method", ["minus", "add"])
def test_two_stems_are_a_source_and_its_rest(tmp_path: Path, checkpoint: Path, method: str) -> None:
    audio = noise(2, 100_000)
    song = write(tmp_path / "song.wav", audio, 48000)
    words = ["--two-stems", "drums", "--other-method", method]
    assert separate(checkpoint, tmp_path / "out", song, *words) == 0
    assert files_of(tmp_path / "out") == ["song/drums.wav", "song/no_drums.wav"]
    wanted = Separator(tiny_model()).separate(audio, 48000)
    drums, rest = (read(tmp_path / "out" / "song" / f"{no}drums.wav") for no in ("", "no_"))
    assert np.allclose(drums, wanted["drums"], atol=1e-6)
    others = sum(wanted[name].numpy() for name in ("vocals", "bass", "other"))
    assert np.allclose(rest, audio - drums if method == "minus" else others, atol=1e-6)


def test_what_is_beyond_full_scale_is_turned_down_cut_or_left(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = write(tmp_path / "loud.wav", noise(2, 9000, scale=30))

    def run(mode: str, *words: str) -> np.ndarray:
        words = ("--targets", "bass", "--clip_mode", mode, *words)
        assert separate(checkpoint, tmp_path / mode, song, *words) == 0
        return read(tmp_path / mode / "loud" / "bass.wav")

    left = run("none")
    peak = np.abs(left).max()
    assert peak > 2
    assert np.array_equal(run("clamp"), left.clip(-1, 1))
    assert "values above full scale were clipped: bass" in capsys.readouterr().err
    assert np.allclose(run("rescale"), left / peak, atol=1e-6)
    lower = f"turned down to full scale: bass {20 * np.log10(peak):.1f} dB"
    assert lower in capsys.readouterr().err
    assert np.allclose(run("rescale", "--bits", "16"), left / peak, atol=2**-15)
    assert files_of(tmp_path / "rescale") == ["loud/bass.wav"]


@pytest.mark.parametrize(("rate", "bitrate"), [(44100, 64), (44100, 320), (22050, 24)])
def test_an_mp3_has_the_bit_rate_that_is_asked_for(
    tmp_path: Path, checkpoint: Path, rate: int, bitrate: int
) -> None:
    song = write(tmp_path / "song.wav", noise(2, 2 * rate), rate)
    words = ["--targets", "bass", "--format", "mp3", "--bitrate", bitrate]
    assert separate(checkpoint, tmp_path / "out", song, *words) == 0
    size = (tmp_path / "out" / "song" / "bass.mp3").stat().st_size
    assert 8 * size / 2000 == pytest.approx(bitrate, rel=0.1)


def test_a_bit_rate_that_mp3_has_not_at_the_song_s_rate_is_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = write(tmp_path / "song.wav", noise(2, 1000), 22050)
    words = ["--format", "mp3", "--bitrate", 320]
    assert separate(checkpoint, tmp_path / "out", song, *words) == 1
    assert "bitrate: got 320, allowed at 22050 Hz: from 8 to 160" in capsys.readouterr().err


def test_folders_and_standard_input_are_songs_too(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(tmp_path / "in" / "album" / "one.flac", noise(2, 900))
    write(tmp_path / "in" / "two.wav", noise(2, 900))
    (tmp_path / "in" / "notes.txt").write_text("words")
    stdin = io.TextIOWrapper(io.BytesIO(one.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    words = [tmp_path / "in", "-", "--targets", "bass"]
    assert separate(checkpoint, tmp_path / "out", *words) == 0
    names = ["album/one/bass.wav", "stdin/bass.wav", "two/bass.wav"]
    assert files_of(tmp_path / "out") == names
    first, second = (tmp_path / "out" / name for name in names[:2])
    assert np.array_equal(read(first), read(second))
    assert separate(checkpoint, tmp_path / "out", "-") == 1  # nothing is left of it


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("ending", ["m4a", "aac", "mp4", "webm"])
def test_what_ffmpeg_decodes_is_separated(tmp_path: Path, checkpoint: Path, ending: str) -> None:
    wav = write(tmp_path / "song.wav", tone(440, 1.0, 48000), 48000)
    song = tmp_path / f"coded.{ending}"
    command = ["ffmpeg", "-v", "error", "-i", str(wav), str(song)]
    subprocess.run(command, check=True)
    assert separate(checkpoint, tmp_path / "out", song, "--two_stems", "bass") == 0
    stems = [read(tmp_path / "out" / "coded" / f"{name}.wav") for name in ("bass", "no_bass")]
    mixture = np.sum(stems, axis=0)[0]
    assert 47_000 < len(mixture) < 51_000
    spectrum = np.abs(np.fft.rfft(mixture[:48_000]))
    assert np.argmax(spectrum) in (439, 440, 441)


def test_the_last_checkpoint_here_is_taken_and_the_stems_go_to_separated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "song.wav", noise(2, 500))
    words = ["separate", "song.wav", "--targets", "bass"]
    assert cli.main(words) == 2
    assert "checkpoint: there is none here or 3 folders below" in capsys.readouterr().err
    model = tiny_model()
    for age, name in enumerate(
        ("runs/film/checkpoint", "mine", "runs/epoch=7", ".hidden/c", "a/b/c/d")
    ):
        save_checkpoint(Path(name), model.state_dict(), model.config, {})
        os.utime(Path(name, "weights.safetensors"), (age, age))
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "checkpoint: mine (the last one trained or imported here" in err
    assert "device: " in err
    assert out.splitlines()[1].split() == ["separated/song/bass.wav", "0.0", out.split()[-1]]
    assert files_of(tmp_path / "separated") == ["song/bass.wav"]


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("output", ["wav", "flac", "mp3"])
def test_songs_of_every_format_become_stems_of_every_format(
    tmp_path: Path, checkpoint: Path, ending: str, output: str
) -> None:
    song = write(tmp_path / f"song.{ending}", tone(440, 0.3))
    length = soundfile.info(song).frames
    arguments = ["--format", output, "--targets", "vocals,bass"]
    assert separate(checkpoint, tmp_path / "out", song, *arguments) == 0
    for name in ("vocals", "bass"):
        info = soundfile.info(tmp_path / "out" / "song" / f"{name}.{output}")
        assert (info.format, info.samplerate, info.channels) == (output.upper(), RATE, 2)
        assert info.frames == length


def test_several_songs_of_different_kinds_at_once_and_json(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = [
        write(tmp_path / "a.wav", noise(2, 5000)),
        write(tmp_path / "b.wav", noise(1, 7001), 48000),
        write(tmp_path / "c.wav", noise(2, 1)),
    ]
    assert separate(checkpoint, tmp_path / "out", *songs, "--json", "--targets", "bass") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["checkpoint"] == load_checkpoint(checkpoint).hash
    assert result["failed"] == {}
    for song, found in zip(songs, result["songs"], strict=True):
        info = soundfile.info(song)
        stem = soundfile.info(found["files"]["bass"])
        assert (stem.frames, stem.channels, stem.samplerate) == (
            info.frames, info.channels, info.samplerate,
        )  # fmt: skip
    assert "b.wav: 48000 Hz: separated at 44100 Hz" in err
    assert "b.wav: mono: separated as two equal channels" in err


def test_a_song_that_was_cut_short_is_separated_and_it_is_said(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = write(tmp_path / "cut.wav", noise(2, 20000))
    whole = song.read_bytes()
    song.write_bytes(whole[: len(whole) // 2])
    assert separate(checkpoint, tmp_path / "out", song, "--targets", "bass") == 0
    assert f"cut.wav: is cut short: {len(whole) - len(whole) // 2} bytes are missing" in (
        capsys.readouterr().err
    )
    # Sizes that stand for one that nobody knew when the header was written, as in a pipe.
    for size in (0, 0x7FFFF024, 0x80000024, 0xFFFFFFFF):
        song.write_bytes(whole[:4] + size.to_bytes(4, "little") + whole[8 : len(whole) // 2])
        assert separate(checkpoint, tmp_path / "out", song, "--targets", "bass") == 0
        err = capsys.readouterr().err
        assert "cut short" not in err
        assert "cut.wav: its header leaves the length open: all 0.2 s that are there" in err


def test_stems_of_a_song_of_unknown_length_are_ordinary_wav_files(
    tmp_path: Path, checkpoint: Path
) -> None:
    song = write(tmp_path / "piped.flac", noise(2, 20000))
    data = bytearray(song.read_bytes())
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # 36 bits of total samples
    song.write_bytes(data)
    assert separate(checkpoint, tmp_path / "out", song, "--targets", "bass") == 0
    stem = tmp_path / "out" / "piped" / "bass.wav"
    assert stem.read_bytes()[:4] == b"RIFF"
    assert soundfile.info(stem).frames == 20000


def test_clipping_is_said_and_float_files_do_not_clip(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = write(tmp_path / "loud.wav", noise(2, 9000, scale=30))
    assert separate(checkpoint, tmp_path / "out", song, "--bits", "16") == 0
    assert "values above full scale were clipped: vocals" in capsys.readouterr().err
    assert separate(checkpoint, tmp_path / "out", song) == 0
    assert "clipped" not in capsys.readouterr().err
    assert np.abs(read(tmp_path / "out" / "loud" / "bass.wav")).max() > 1


def test_the_template_names_the_files(tmp_path: Path, checkpoint: Path) -> None:
    song = write(tmp_path / "My Song.wav", noise(2, 500))
    name = "stems/{source} of {track}.flac"
    assert separate(checkpoint, tmp_path / "out", song, "--name", name) == 0
    assert files_of(tmp_path / "out") == sorted(f"stems/{s} of My Song.flac" for s in SOURCES)


def test_track_names_never_leave_the_output_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for name in ("...wav", "..\\..\\x.wav", ".hidden.wav", "a:b?.wav", "\u202e" * 90 + ".wav"):
        (paths,) = plan_files([tmp_path / name], ["vocals"], folder, "{track}/{source}", "wav")
        assert paths["vocals"].resolve().is_relative_to(folder)
        assert paths["vocals"].name == "vocals.wav"
        assert len(paths["vocals"].parent.name.encode()) <= 255
    assert safe_name("..") == "_"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("../{track}/{source}", "has .. in it"),
        ("/tmp/{track}/{source}", "allowed: a file path inside output_dir"),
        ("{track}/{source}/", "allowed: a file path inside output_dir"),
        ("", "allowed: a file path inside output_dir"),
        ("{artist}/{source}", "allowed in braces: {track} and {source}"),
        ("\x1b[31m{track}/{source}", r"got '\\x1b.*no characters that a terminal obeys"),
        ("{track}\n{source}", "no characters that a terminal obeys"),
        ("{track.__class__}{source}", "allowed in braces"),
        ("x" * 300 + "/{source}", "a path with a part of 300 bytes; allowed: 255"),
        ("{track}/{source}" + "ä" * 124, r"part of 258 bytes; allowed: 255"),
        ("{track}", "which is that of vocals of"),
        ("{source}", "which is that of vocals of"),
    ],
)
def test_a_template_that_cannot_be_used_is_rejected(
    tmp_path: Path, template: str, message: str
) -> None:
    songs = [tmp_path / "a.wav", tmp_path / "b.wav"]
    with pytest.raises(ConfigError, match=message):
        plan_files(songs, ["vocals", "drums"], tmp_path / "out", template, "wav")


@pytest.mark.parametrize("link", ["song", "song/vocals.wav"])
def test_stems_are_not_written_where_a_link_leads(
    tmp_path: Path, checkpoint: Path, link: str, capsys: pytest.CaptureFixture[str]
) -> None:
    song, place = write(tmp_path / "song.wav", noise(2, 1000)), tmp_path / "out" / link
    (tmp_path / "home").mkdir()
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "home")
    assert separate(checkpoint, tmp_path / "out", song) == 2
    assert f"output_dir: {place} is a link, and nothing is written" in capsys.readouterr().err
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_columns_stand_below_each_other_whatever_is_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding, "backslashreplace"))
    names = ["a\u2067b", "a\x1bb", "a\udc80", "\u5149", "plain"]
    print_table(("file", "seconds"), [(name, "1.0") for name in names])
    sys.stdout.flush()
    lines = stream.getvalue().decode(encoding).splitlines()
    assert {line.rindex("1.0") for line in lines[1:]} == {lines[0].index("seconds")}
    assert lines[1].startswith(r"a\u2067b ")


def test_two_songs_of_one_name_and_overwriting_a_song_are_rejected(tmp_path: Path) -> None:
    songs = [tmp_path / "a" / "x.wav", tmp_path / "b" / "X.wav"]
    with pytest.raises(ConfigError, match=r"that of vocals of .*a/x\.wav"):
        plan_files(songs, ["vocals"], tmp_path / "out", "{track}/{source}", "wav")
    with pytest.raises(ConfigError, match=r"that of the song .*a/x\.wav"):
        plan_files(songs[:1], ["vocals"], tmp_path / "a", "{track}", "wav")


def test_one_bad_song_is_named_and_the_others_are_separated(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.wav", noise(2, 500))
    bad = tmp_path / "words.wav"
    bad.write_text("words")
    broken = noise(2, 90_000)
    broken[0, 80_000] = np.nan
    nan = write(tmp_path / "nan.wav", broken)
    assert separate(checkpoint, tmp_path / "out", bad, nan, good) == 1
    err = capsys.readouterr().err
    assert "words.wav: is not an audio file" in err
    assert "nan.wav: holds a value that is not a finite number" in err
    assert "1 of 3 songs were separated, 2 failed" in err
    # Nothing of the song that failed in its middle is left.
    assert files_of(tmp_path / "out") == sorted(f"good/{source}.wav" for source in SOURCES)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good"]


def test_a_name_of_two_lines_is_told_in_one(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, cut = tmp_path / "a\nlasaft: b.wav", tmp_path / "c\nlasaft: d.wav"
    bad.write_text("words")
    cut.write_bytes(write(tmp_path / "whole.wav", noise(2, 500)).read_bytes()[:-40])
    assert separate(checkpoint, tmp_path / "out", bad, cut) == 1
    err = capsys.readouterr().err
    assert r"a\nlasaft: b.wav: is not an audio file" in err
    assert r"c\nlasaft: d.wav: is cut short" in err
    assert "\nlasaft: b" not in err
    assert "\nlasaft: d" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--targets", "guitar"], 2, "targets: got guitar, allowed: vocals, drums, bass, other"),
        (["--targets", ","], 2, "targets: got ',', allowed: names with commas between"),
        (
            ["--overlap_ratio", "0.7"],
            2,
            "overlap_ratio: got '0.7', allowed: a number from 0 to 0.5",
        ),
        (["--overlap_ratio", "half"], 2, "overlap_ratio: got 'half', allowed: a number"),
        (["--batch_size", "0"], 2, "batch_size: got '0', allowed: a whole number of at least 1"),
        (["--device", "tpu"], 2, "device: got 'tpu', allowed: auto, cpu, cuda"),
        (["--device", "cuda:77"], 2, "device: got 'cuda:77', but"),
        (["--precision", "16"], 2, "precision: got '16', allowed: 32, bf16"),
        (["--format", "flac", "--bits", "32f"], 2, "bits: got '32f' with format flac: 24, 16"),
        (["--format", "mp3", "--name", "{track}/{source}.wav"], 2, "but name ends in .wav"),
        (["--name", "../{track}/{source}"], 2, "has .. in it"),
        (["--overlap", "0.5"], 2, "overlap: no such option; did you mean overlap_ratio?"),
        (
            ["--two_stems", "guitar"],
            2,
            "two_stems: got guitar, allowed: vocals, drums, bass, other",
        ),
        (
            ["--two_stems", "bass", "--targets", "bass"],
            2,
            "targets: allowed only without two_stems",
        ),
        (
            ["--two_stems", "vocals+drums+bass+other", "--other_method", "add"],
            2,
            "leaves no source of vocals, drums, bass, other for other_method add (minus: the rest)",
        ),
        (["--other_method", "add"], 2, "other_method: has no effect without two_stems"),
        (["--bitrate", "64"], 2, "bitrate: has no effect with format wav"),
        (["-", "-"], 2, "SONG: got -, twice"),
        (["folder"], 2, "folder: holds no audio file (wav, "),
    ],
)
def test_wrong_usage_of_separate_is_one_clear_line(  # noqa: PLR0917
    tmp_path: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    song = write(tmp_path / "song.wav", noise(2, 500))
    (tmp_path / "folder").mkdir()
    arguments = [str(tmp_path / "folder") if word == "folder" else word for word in arguments]
    assert separate(checkpoint, tmp_path / "out", song, *arguments) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_and_an_unwritable_folder_are_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = write(tmp_path / "song.wav", noise(2, 500))
    assert separate(tmp_path / "none", tmp_path / "out", song) == 1
    assert "none: there is no such checkpoint folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert separate(checkpoint, tmp_path / "file" / "out", song) == 1
    assert f"output_dir {tmp_path}/file/out: cannot be written" in capsys.readouterr().err


def test_mp3_of_an_odd_sample_rate_is_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = write(tmp_path / "song.wav", noise(2, 500), 96000)
    assert separate(checkpoint, tmp_path / "out", song, "--format", "mp3") == 1
    assert "mp3 has no sample rate of 96000 Hz" in capsys.readouterr().err
    assert files_of(tmp_path / "out") == []


def test_an_interruption_exits_with_130_and_leaves_nothing_half_written(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real, calls = stems.AudioWriter.write, []

    def press(self: Any, block: Any) -> None:
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        real(self, block)

    monkeypatch.setattr(stems.AudioWriter, "write", press)
    songs = [write(tmp_path / f"{name}.wav", noise(2, 9000)) for name in "ab"]
    songs.append(write(tmp_path / "c.wav", noise(2, 90_000)))
    assert separate(checkpoint, tmp_path / "out", *songs) == 130
    assert "interrupted" in capsys.readouterr().err
    finished = sorted(f"{name}/{source}.wav" for name in "ab" for source in SOURCES)
    assert files_of(tmp_path / "out") == finished


def test_songs_side_by_side_give_what_they_give_one_by_one(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = [write(tmp_path / f"{name}.wav", noise(2, 40_000, seed=name)) for name in range(4)]
    bad = tmp_path / "bad.wav"
    bad.write_text("words")
    for jobs in (1, 3):
        words = [*songs, bad, "--jobs", jobs, "--targets", "bass"]
        assert separate(checkpoint, tmp_path / f"out{jobs}", *words) == 1
        out, err = capsys.readouterr()
        names = [line.split()[0] for line in out.splitlines()[1:]]
        assert names == [str(tmp_path / f"out{jobs}" / s.stem / "bass.wav") for s in songs]
        assert "4 of 5 songs were separated, 1 failed" in err
    for song in songs:
        one, other = (read(tmp_path / f"out{jobs}" / song.stem / "bass.wav") for jobs in (1, 3))
        assert np.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_real_command_and_leaves_nothing(
    tmp_path: Path, checkpoint: Path, number: signal.Signals, jobs: int
) -> None:
    song = write(tmp_path / "song.flac", np.tile(noise(2, RATE), 60))
    songs = [str(song), str(shutil.copy(song, tmp_path / "other.flac"))]
    command = [sys.executable, "-m", "lasaft.cli", "separate", *songs, "--jobs", str(jobs),
               "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    partial = tmp_path / "out" / "song"
    end = time.monotonic() + 60
    while not (partial.is_dir() and any(partial.iterdir())) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "\nstopping ...\nlasaft: interrupted; what was finished is kept" in err
    assert "Traceback" not in err
    assert files_of(tmp_path / "out") == []


def test_every_problem_is_told_at_once_before_torch_is_loaded(
    tmp_path: Path, checkpoint: Path
) -> None:
    code = "import sys, lasaft.cli as c; print(c.main(sys.argv[1:]), 'torch' in sys.modules)"
    words = ["separate", "--out-dir", "x", "--shifts", "0", "--device", "tpu", "--name", "{x}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, text=True, check=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout == "2 False\n"
    first, *problems = done.stderr.splitlines()
    assert first == "lasaft: 3 errors:"
    assert [line.split(":")[0].strip() for line in problems] == ["out_dir", "SONG", "shifts"]
    (tmp_path / "file").touch()
    for words, exit_code in (
        (["song.wav", "--targets", "guitar"], 2),
        (["song.wav"], 1),
        (["file", "--output_dir", "file/out"], 1),
        (["file", "file.wav", "--name", "{source}"], 2),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, "separate", "--checkpoint", str(checkpoint), *words],
            capture_output=True, text=True, check=True, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert done.stdout == f"{exit_code} False\n"


@pytest.mark.parametrize("words", [["--help"], ["separate", "--help"], ["export", "-h"]])
def test_a_page_of_help_fits_a_screen(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lasaft")
    assert len(lines) < 50
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", [*SeparateOptions.model_fields])
def test_help_explains_each_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["separate", "--help", name.replace("_", "-")]) == 0
    assert capsys.readouterr().out.startswith(f"--{name}\nmeaning: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "command: got none, allowed: separate, score,"),
        (["sperate"], "command: got 'sperate', .*; did you mean separate\\?"),
        (["export", "c"], "FILE: is missing"),
        (["export", "c", "f", "g"], "g: is one word too many, allowed: CHECKPOINT FILE"),
        (["import_checkpoint"], "2 errors:\n  FILE.ckpt: is missing\n  DIR: is missing"),
        (["score", "a", "b", "-x"], "-x: an option is written --name VALUE"),
        (["export", "--help", "fil"], "help: got 'fil', allowed: an option of export"),
    ],
)
def test_wrong_usage_of_a_command_is_told(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert re.match(f"lasaft: {message}", capsys.readouterr().err)


# --- import-checkpoint --------------------------------------------------------------------------


def test_an_imported_checkpoint_separates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixture = Fixture("track_gpocm_lasaft")
    torch.save(lightning_content(fixture), tmp_path / "a.ckpt")
    arguments = ["import-checkpoint", str(tmp_path / "a.ckpt"), str(tmp_path / "c"), "--json"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "CUNET_TFC_GPoCM_LaSAFT"
    mixture = fixture["mixture_int16"].numpy().T.astype(np.float32) / 32768
    song = write(tmp_path / "song.wav", mixture)
    assert separate(tmp_path / "c", tmp_path / "out", song, "--targets", "vocals") == 0
    theirs = fixture["raw/vocals_ov0.5"].numpy().T
    assert np.abs(read(tmp_path / "out" / "song" / "vocals.wav") - theirs).max() < 1e-6


def test_a_malicious_checkpoint_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = lightning_content(Fixture("net_film_decoder"), callbacks=Running(os.system, "exit"))
    torch.save(content, tmp_path / "a.ckpt")
    arguments = ["import-checkpoint", str(tmp_path / "a.ckpt"), str(tmp_path / "c")]
    assert cli.main([*arguments, "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "a.ckpt: refused: it asks for" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "c").exists()
