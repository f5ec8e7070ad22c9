"""Decoding: samples equal scipy's and musdb's, bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
import torch

from lasaft.errors import AudioError, DataError
from pipeline.data.songs.audio_files import STEM_MP4_STREAMS, sound_blocks
from pipeline.data.songs.checks import check_tracks
from pipeline.data.songs.tracks import (
    Track,
    audio_blocks,
    list_tracks,
    read_track,
    source_hash,
)
from pipeline.data.songs.wanted import Wanted
from tests.helpers.wavs import STEMS, faults_in, noise, write_track

SOURCES = ("vocals", "drums", "bass", "other")

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None,
    reason="needs ffmpeg and ffprobe",
)


def _only_track(root: Path) -> Track:
    (track,) = list_tracks(root, Wanted(SOURCES))
    return track


def _musdb_track(root: Path, is_wav: bool) -> Any:
    import musdb

    return musdb.DB(root=str(root), is_wav=is_wav, subsets="train").tracks[0]


def _encode(folder: Path, file: Path, streams: tuple[str, ...] = STEM_MP4_STREAMS) -> None:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y"]
    for stream in streams:
        command += ["-i", str(folder / f"{stream}.wav")]
    for index in range(len(streams)):
        command += ["-map", f"{index}:a"]
    file.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, "-c:a", "aac", "-f", "mp4", str(file)], check=True)


@pytest.fixture
def stem_mp4(tmp_path: Path) -> Path:
    """A data set with one .stem.mp4: loud noise that clips, so that 16 bits matter."""
    folder = write_track(tmp_path / "wav", seconds=1.3)
    loud = noise(1.3, seed=9).astype(np.int32) * 4
    clipped = loud.clip(-32768, 32767).astype(np.int16)
    soundfile.write(str(folder / "vocals.wav"), clipped, 44100, subtype="PCM_16")
    _encode(folder, tmp_path / "set" / "train" / "A - B.c.stem.mp4")
    return tmp_path / "set"


def test_wav_samples_equal_scipys(tmp_path: Path) -> None:
    folder = write_track(tmp_path / "train" / "a", seconds=0.7)
    audio = read_track(_only_track(tmp_path))
    assert audio.sample_rate == 44100
    for stem, samples in zip(STEMS, [*audio.sources, audio.mixture], strict=True):
        _, truth = scipy.io.wavfile.read(folder / f"{stem}.wav")
        np.testing.assert_array_equal(samples.numpy().T, (truth / 32768).astype(np.float32))


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_24"])
def test_finer_wav_samples_equal_soundfiles(tmp_path: Path, subtype: str) -> None:
    folder = write_track(tmp_path / "train" / "a", subtype=subtype)
    audio = read_track(_only_track(tmp_path))
    truth, _ = soundfile.read(str(folder / "drums.wav"), dtype="float32")
    np.testing.assert_array_equal(audio.sources[1].numpy().T, truth)


@needs_ffmpeg
def test_wav_samples_equal_musdbs(tmp_path: Path) -> None:
    write_track(tmp_path / "train" / "a b.c")
    audio, truth = read_track(_only_track(tmp_path)), _musdb_track(tmp_path, is_wav=True)
    np.testing.assert_array_equal(audio.mixture.numpy().T, truth.audio)
    for index, source in enumerate(SOURCES):
        np.testing.assert_array_equal(audio.sources[index].numpy().T, truth.sources[source].audio)


@needs_ffmpeg
def test_stem_mp4_samples_equal_musdbs(stem_mp4: Path) -> None:
    track = _only_track(stem_mp4)
    (samples,) = check_tracks([track], root=stem_mp4)
    audio, truth = read_track(track), _musdb_track(stem_mp4, is_wav=False)
    assert abs(samples - audio.mixture.shape[1]) < 2048  # AAC frames at the end
    np.testing.assert_array_equal(audio.mixture.numpy().T, truth.audio)
    for index, source in enumerate(SOURCES):
        np.testing.assert_array_equal(audio.sources[index].numpy().T, truth.sources[source].audio)


@needs_ffmpeg
@pytest.mark.skipif("LASAFT_REAL_DATA" not in os.environ, reason="needs LASAFT_REAL_DATA")
def test_real_samples_equal_musdbs() -> None:
    root = Path(os.environ["LASAFT_REAL_DATA"]) / "musdb18-sample"
    track = list_tracks(root, Wanted(SOURCES, is_wav=False))[0]
    check_tracks([track], root=root)
    audio, truth = read_track(track), _musdb_track(root, is_wav=False)
    assert track.name == truth.name
    np.testing.assert_array_equal(audio.mixture.numpy().T, truth.audio)
    for index, source in enumerate(SOURCES):
        np.testing.assert_array_equal(audio.sources[index].numpy().T, truth.sources[source].audio)


@needs_ffmpeg
def test_a_truncated_stem_mp4_is_found_by_its_boxes(stem_mp4: Path) -> None:
    track = _only_track(stem_mp4)
    whole = track.path.read_bytes()
    track.path.write_bytes(whole[:-20000])
    (fault,) = faults_in(stem_mp4, [track])
    assert fault.startswith("train/A - B.c: A - B.c.stem.mp4 is truncated: ")


@needs_ffmpeg
def test_a_stem_mp4_that_decodes_short_is_found(stem_mp4: Path) -> None:
    track = _only_track(stem_mp4)
    data = bytearray(track.path.read_bytes())
    start = data.index(b"mdat") + 4
    end = start + int.from_bytes(data[start - 8 : start - 4], "big") - 8
    data[start + (end - start) // 4 : end] = bytes(end - start - (end - start) // 4)
    track.path.write_bytes(data)
    with pytest.raises(DataError, match=r"A - B\.c\.stem\.mp4 decodes to \d+ samples where"):
        read_track(track)


@needs_ffmpeg
def test_a_stem_mp4_with_two_streams_is_a_fault(tmp_path: Path) -> None:
    folder = write_track(tmp_path / "wav")
    _encode(folder, tmp_path / "set" / "train" / "x.stem.mp4", ("mixture", "drums"))
    root = tmp_path / "set"
    assert faults_in(root, [_only_track(root)]) == [
        "train/x: x.stem.mp4 has 2 audio streams; allowed: 5 (mixture, drums, bass, other, vocals)"
    ]


@needs_ffmpeg
def test_a_stem_mp4_with_streams_of_unequal_length_is_a_fault(tmp_path: Path) -> None:
    folder = write_track(tmp_path / "wav", seconds=2)
    soundfile.write(str(folder / "bass.wav"), noise(1), 44100)
    _encode(folder, tmp_path / "set" / "train" / "x.stem.mp4")
    (fault,) = faults_in(tmp_path / "set", [_only_track(tmp_path / "set")])
    assert fault.startswith("train/x: unequal lengths in samples: mixture 88200, drums 88200, bass")


@needs_ffmpeg
@pytest.mark.parametrize("data", [b"", b"garbage" * 100])
def test_a_file_that_is_no_mp4_is_a_fault(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.stem.mp4").write_bytes(data)
    (fault,) = faults_in(tmp_path, [_only_track(tmp_path)])
    assert fault.startswith("train/x: x.stem.mp4 ")


@needs_ffmpeg
def test_stem_mp4_has_no_other_sources(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.stem.mp4").write_bytes(b"")
    tracks = list_tracks(tmp_path, Wanted(("vocals", "piano")))
    assert faults_in(tmp_path, tracks) == [
        "train/x: has no stem piano; .stem.mp4 has mixture, drums, bass, other, vocals"
    ]


def test_without_ffmpeg_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").mkdir()
    for name in "ab":
        (tmp_path / "train" / f"{name}.stem.mp4").write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"needs ffmpeg and ffprobe.*install") as said:
        faults_in(tmp_path, list_tracks(tmp_path, Wanted(SOURCES)))
    assert "\n" not in str(said.value)


def test_the_source_hash_knows_bytes_not_times_or_places(tmp_path: Path) -> None:
    first = write_track(tmp_path / "one" / "train" / "a")
    shutil.copytree(first, tmp_path / "two" / "train" / "a")
    hashes = [source_hash(_only_track(tmp_path / place)) for place in ("one", "two")]
    assert hashes[0] == hashes[1]
    (first / "bass.wav").rename(first / "x")
    (first / "drums.wav").rename(first / "bass.wav")
    (first / "x").rename(first / "drums.wav")
    assert source_hash(_only_track(tmp_path / "one")) != hashes[1]


def test_blocks_of_any_size_are_the_same_audio(tmp_path: Path) -> None:
    write_track(tmp_path / "train" / "a", seconds=0.5)
    track = _only_track(tmp_path)
    whole = torch.cat(list(audio_blocks(track, 1_000_000)), dim=-1)
    pieces = torch.cat(list(audio_blocks(track, 777)), dim=-1)
    assert torch.equal(whole, pieces)


def test_joined_flacs_of_which_the_first_alone_would_be_read_are_refused(tmp_path: Path) -> None:
    for name in ("vocals", "drums"):
        path = tmp_path / f"{name}.flac"
        soundfile.write(path, noise(1), 44100)
        path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(AudioError, match=r"^vocals\.flac holds several streams in one file"):
        list(sound_blocks([tmp_path / "vocals.flac", tmp_path / "drums.flac"], 100))
