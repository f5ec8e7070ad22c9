"""Listing and checking of tracks: layouts, splits, odd names, and every fault at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lasaft.errors import DataError
from pipeline.data.songs.checks import check_tracks
from pipeline.data.songs.tracks import audio_blocks, list_tracks, read_track
from pipeline.data.songs.wanted import Wanted
from tests.helpers.wavs import faults_in, noise, write_track

SOURCES = ("vocals", "drums", "bass", "other")


def _names(root: Path, **options: Any) -> list[str]:
    return [str(track) for track in list_tracks(root, Wanted(SOURCES, **options))]


def _faults(root: Path) -> list[str]:
    return faults_in(root, list_tracks(root, Wanted(SOURCES)))


def _write(path: Path, audio: np.ndarray, rate: int = 44100, subtype: str = "PCM_16") -> None:
    soundfile.write(str(path), audio, rate, subtype=subtype)


def test_musdb18_own_validation_tracks_are_split_off(tmp_path: Path) -> None:
    for name in ("ANiMAL - Rockshow", "A Classic Education - NightOwl"):
        (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "test" / "Zeno - Signs").mkdir(parents=True)
    assert _names(tmp_path) == [
        "train/A Classic Education - NightOwl",
        "valid/ANiMAL - Rockshow",
        "test/Zeno - Signs",
    ]


def test_mus_yaml_names_the_validation_tracks(tmp_path: Path) -> None:
    for name in ("ANiMAL - Rockshow", "Näive — 2.0 (live).wav"):
        (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "mus.yaml").write_text('validation_tracks: ["Näive — 2.0 (live).wav"]\n', "utf-8")
    assert _names(tmp_path) == ["train/ANiMAL - Rockshow", "valid/Näive — 2.0 (live).wav"]


def test_a_valid_folder_is_a_split(tmp_path: Path) -> None:
    for name in ("train/a", "valid/b"):
        (tmp_path / name).mkdir(parents=True)
    assert _names(tmp_path) == ["train/a", "valid/b"]


@pytest.mark.parametrize("text", ["validation_tracks: 7", "- a\n- b", "a: [", "\t"])
def test_a_broken_mus_yaml_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "mus.yaml").write_text(text)
    with pytest.raises(DataError, match=r"mus\.yaml: not readable"):
        _names(tmp_path)


def test_an_unknown_validation_track_is_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "mus.yaml").write_text("validation_tracks: [b]\n")
    with pytest.raises(DataError, match=r"mus\.yaml: validation_tracks names 'b'; allowed"):
        _names(tmp_path)


def test_hidden_things_are_no_tracks(tmp_path: Path) -> None:
    for name in ("train/song", "train/.ipynb_checkpoints", "train/._song", "test/__MACOSX"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "train" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "train" / "._x.stem.mp4").write_bytes(b"x")
    assert _names(tmp_path) == ["train/song"]


def test_stem_mp4_files_are_found_by_looking(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "Music Delta - 80s Rock.stem.mp4").write_bytes(b"")
    assert _names(tmp_path) == ["train/Music Delta - 80s Rock"]
    with pytest.raises(DataError, match="no wav track in train; found 1 in the other layout"):
        _names(tmp_path, is_wav=True)


def test_two_layouts_in_one_folder_need_a_choice(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "b.stem.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 track folders and 1 \.stem\.mp4 files; say which"):
        _names(tmp_path)
    assert _names(tmp_path, is_wav=False) == ["test/b"]


def test_dev_mode_keeps_one_track_a_split(tmp_path: Path) -> None:
    for name in ("train/b", "train/a", "valid/d", "test/f", "test/e"):
        (tmp_path / name).mkdir(parents=True)
    assert _names(tmp_path, dev_mode=True) == ["train/a", "valid/d", "test/e"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        _names(tmp_path / "nowhere")


def test_an_empty_folder_is_no_musdb18(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither train/ nor test/, but nothing"):
        _names(tmp_path)


def test_another_folder_is_no_musdb18(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="neither train/ nor test/, but photos"):
        _names(tmp_path)


def test_empty_splits_hold_no_track(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="no wav track in train; the folders are empty"):
        _names(tmp_path)


def test_a_sound_track_has_no_fault(tmp_path: Path) -> None:
    write_track(tmp_path / "train" / "Ünï cödé. & dots... ")
    tracks = list_tracks(tmp_path, Wanted(SOURCES))
    assert check_tracks(tracks, root=tmp_path) == [44100]


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    faulty = {name: write_track(tmp_path / "train" / name) for name in "abcdefgh"}
    (faulty["a"] / "drums.wav").unlink()
    (faulty["b"] / "mixture.wav").unlink()
    _write(faulty["c"] / "bass.wav", noise(1, channels=3))
    _write(faulty["d"] / "other.wav", noise(1), rate=22050)
    _write(faulty["e"] / "vocals.wav", noise(0.5))
    whole = (faulty["f"] / "vocals.wav").read_bytes()
    (faulty["f"] / "vocals.wav").write_bytes(whole[:-1000])
    (faulty["g"] / "drums.wav").write_bytes(b"not audio at all")
    for file in faulty["h"].iterdir():
        file.unlink()
    write_track(tmp_path / "test" / "sound")
    tracks = list_tracks(tmp_path, Wanted(SOURCES))
    with pytest.raises(DataError) as caught:
        check_tracks(tracks, root=tmp_path)
    lines = str(caught.value).split("\n  ")
    assert lines[0] == "8 faults in the tracks:"
    expected = [
        "train/a: drums.wav is missing; --missing_stems silence reads silence, skip leaves the "
        "song out",
        "train/b: mixture.wav is missing; --missing_stems silence (or skip) takes the sum of the "
        "sources",
        "train/c: bass has 3 channels; allowed: 2",
        "train/d: other has a sample rate of 22050 Hz; allowed: 44100; --resample True resamples "
        "it",
        "train/e: unequal lengths in samples: vocals 22050, drums 44100, bass 44100, other 44100, "
        "mixture 44100; allowed: one length, or at most 0.05 s apart; --length_tolerance 0.5 pads "
        "and cuts them",
        "train/f: vocals.wav is truncated: 1000 bytes fewer than its header says",
        "train/g: drums.wav cannot be read as audio (Format not recognised)",
        "train/h: no stem in this folder; allowed: vocals.wav, drums.wav, bass.wav, other.wav, "
        "mixture.wav",
    ]
    assert lines[1:] == expected


def test_an_empty_wav_is_a_fault(tmp_path: Path) -> None:
    track = write_track(tmp_path / "train" / "a", seconds=0)
    assert _faults(tmp_path) == ["train/a: every stem is empty (0 samples)"]
    assert len(list(track.iterdir())) == 5


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF, "flac"])
def test_a_stem_of_unknown_length_is_no_fault_and_read_whole(
    tmp_path: Path, size: int | str
) -> None:
    track = write_track(tmp_path / "train" / "a", seconds=3)
    file = track / "vocals.wav"
    truth, rate = soundfile.read(str(file))
    if isinstance(size, int):
        data = bytearray(file.read_bytes())
        at = data.index(b"data") + 4
        data[at : at + 4] = size.to_bytes(4, "little")
        data[4:8] = ((size + at - 4) % 2**32).to_bytes(4, "little")
        file.write_bytes(data)
    else:
        file.unlink()
        file = file.with_suffix(".flac")
        soundfile.write(str(file), truth, rate)
        data = bytearray(file.read_bytes())
        data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # 36 bits of total samples
        file.write_bytes(data)
    assert _faults(tmp_path) == []
    (song,) = list_tracks(tmp_path, Wanted(SOURCES))
    np.testing.assert_array_equal(read_track(song).sources[0].numpy().T, truth.astype(np.float32))
    (part,) = audio_blocks(song, 1 << 20, start=100_000, stop=100_010)
    np.testing.assert_array_equal(part[0].numpy().T, truth[100_000:100_010].astype(np.float32))


def test_a_wav_that_says_2_gb_is_a_fault(tmp_path: Path) -> None:
    file = write_track(tmp_path / "train" / "a") / "vocals.wav"
    data = bytearray(file.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = (2 * 10**9).to_bytes(4, "little")
    file.write_bytes(data)
    assert _faults(tmp_path) == [
        f"train/a: vocals.wav is truncated: {2 * 10**9 - 176400} bytes fewer than its header says"
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_found(tmp_path: Path, value: float) -> None:
    folder = write_track(tmp_path / "train" / "a", subtype="FLOAT")
    audio = np.zeros((44100, 2), np.float32)
    audio[30000, 1] = value
    _write(folder / "bass.wav", audio, subtype="FLOAT")
    (track,) = list_tracks(tmp_path, Wanted(SOURCES))
    with pytest.raises(DataError, match="train/a: bass is not finite at sample 30000; allowed"):
        list(audio_blocks(track, 7000))


def test_a_file_that_shrinks_after_the_check_is_found(tmp_path: Path) -> None:
    folder = write_track(tmp_path / "train" / "a")
    (track,) = list_tracks(tmp_path, Wanted(SOURCES))
    check_tracks([track], root=tmp_path)
    whole = (folder / "other.wav").read_bytes()
    (folder / "other.wav").write_bytes(whole[:90044])
    with pytest.raises(DataError, match=r"train/a: unequal lengths in samples: .*other 22500"):
        read_track(track)


def test_own_sources_are_read_by_their_names(tmp_path: Path) -> None:
    write_track(tmp_path / "train" / "a", stems=("piano", "violin", "mixture"))
    (track,) = list_tracks(tmp_path, Wanted(("piano", "violin")))
    assert check_tracks([track], root=tmp_path) == [44100]
    assert read_track(track).sources.shape == (2, 2, 44100)
