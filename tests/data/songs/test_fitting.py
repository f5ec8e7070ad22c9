"""Songs that aren't uniform: other rates, mono, missing stems, lengths; and how data sets lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly

from lasaft.errors import DataError
from pipeline.data.songs.tracks import (
    audio_blocks,
    fit_of,
    list_tracks,
    listing_notes,
    read_track,
    source_hash,
)
from pipeline.data.songs.wanted import Wanted
from tests.helpers.shards import make_shards, small_config
from tests.helpers.wavs import examined, faults_in, noise

TWO = ("piano", "violin")
RATE = 44100


def _tone(rate: int, hz: float = 9000.0, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def _write(file: Path, audio: np.ndarray, rate: int = RATE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, audio, rate, subtype="FLOAT" if audio.dtype.kind == "f" else "PCM_16")


def _noise(file: Path, samples: int = 4000, seed: int = 0, channels: int = 2) -> np.ndarray:
    audio = noise(1, channels, seed)[:samples]
    _write(file, audio)
    return (audio.reshape(samples, -1).T / 32768).astype(np.float32)


def test_a_song_of_another_rate_is_resampled_at_least_as_well_as_by_scipy(tmp_path: Path) -> None:
    for stem in TWO:
        _write(tmp_path / "train" / "a" / f"{stem}.wav", np.stack([_tone(48000)] * 2, 1), 48000)
    (track,) = list_tracks(tmp_path, Wanted(TWO))
    assert faults_in(tmp_path, [track]) == [
        "train/a: every stem has a sample rate of 48000 Hz; allowed: 44100; --resample True "
        "resamples it"
    ]
    (track,) = list_tracks(tmp_path, Wanted(TWO, resample=True))
    (found,) = examined(tmp_path, [track])
    assert (found.faults, found.samples) == ([], RATE)
    assert found.notes[0] == "every stem is resampled from 48000 Hz"
    ours = read_track(track).sources[0, 0].double().numpy()
    theirs = resample_poly(_tone(48000), 147, 160)
    inner = slice(1000, -1000)  # the ends lack what lies beyond them
    errors = [np.abs(one - _tone(RATE))[inner].max() for one in (ours, theirs)]
    assert errors[0] < 1e-6  # 120 dB below the tone; scipy's own filter is at 4e-4
    assert errors[0] < errors[1]


def test_a_part_of_a_fitted_song_is_that_part_of_the_whole(tmp_path: Path) -> None:
    _write(tmp_path / "train" / "a" / "piano.wav", noise(0.5, rate=48000), 48000)
    _write(tmp_path / "train" / "a" / "violin.wav", noise(0.49, channels=1))
    (track,) = list_tracks(tmp_path, Wanted(TWO, resample=True))
    assert fit_of(track).changes == (
        "piano is resampled from 48000 Hz",
        "violin is mono: both channels are it",
        "violin is padded by 441 samples",
    )
    whole = torch.cat(list(audio_blocks(track, 3000)), -1)
    assert whole.shape == (3, 2, 22050)
    assert torch.equal(whole[1, 0], whole[1, 1])
    assert not whole[1, :, -441:].any()
    for start, stop in ((0, 22050), (7001, 9999), (20000, 22050), (21900, 22050)):
        parts = list(audio_blocks(track, 512, start, stop))
        assert torch.equal(torch.cat(parts, -1), whole[..., start:stop])


def test_lengths_some_samples_apart_follow_the_mixture(tmp_path: Path) -> None:
    song = tmp_path / "train" / "a"
    piano, violin = _noise(song / "piano.wav", 4010), _noise(song / "violin.wav", 3990, 1)
    _noise(song / "mixture.wav", 4000, 2)
    (track,) = list_tracks(tmp_path, Wanted(TWO))
    assert faults_in(tmp_path, [track]) == []
    audio = read_track(track)
    assert torch.equal(audio.sources[0], torch.from_numpy(piano[:, :4000]))
    assert torch.equal(audio.sources[1, :, :3990], torch.from_numpy(violin))
    assert fit_of(track).changes == (
        "piano is cut by 10 samples",
        "violin is padded by 10 samples",
    )
    (strict,) = list_tracks(tmp_path, Wanted(TWO, length_tolerance=10 / RATE / 2))
    assert faults_in(tmp_path, [strict])[0].endswith("--length_tolerance 0.01 pads and cuts them")


def test_a_song_that_lacks_a_stem_has_silence_or_is_left_out(tmp_path: Path) -> None:
    piano = _noise(tmp_path / "train" / "a" / "piano.wav")
    for stem in (*TWO, "mixture"):
        _noise(tmp_path / "train" / "b" / f"{stem}.wav")
    tracks = list_tracks(tmp_path, Wanted(TWO, missing_stems="silence"))
    first, second = examined(tmp_path, tracks)
    assert first.notes == [
        "violin is missing: silence",
        "mixture is missing: the sum of the sources",
    ]
    assert (first.faults, second.faults, second.notes) == ([], [], [])
    audio = read_track(tracks[0])
    assert not audio.sources[1].any()
    assert torch.equal(audio.mixture, torch.from_numpy(piano))
    skip = Wanted(TWO, missing_stems="skip")
    assert [str(track) for track in list_tracks(tmp_path, skip)] == ["train/b"]
    assert list(listing_notes(tmp_path, skip)) == ["missing_stems skip leaves out 1 songs: train/a"]
    with pytest.raises(DataError, match=r"each of the 2 songs lacks a stem \(flute \(2\), vio"):
        list_tracks(tmp_path, replace(skip, sources=(*TWO, "flute")))


def test_forgotten_sources_are_one_line_with_the_names_found(tmp_path: Path) -> None:
    for song in range(33):
        for stem in (*TWO, "mixture"):
            _noise(tmp_path / "train" / str(song) / f"{stem}.wav", 10)
    with pytest.raises(DataError) as caught:
        list_tracks(tmp_path, Wanted(("vocals", "drums")))
    assert str(caught.value) == (
        f"musdb_root {tmp_path}: no song has a stem called vocals, drums; found: piano (33), "
        "violin (33); allowed: names that are there, such as --sources piano,violin"
    )


def test_the_manifest_says_what_was_done_and_training_and_scores_have_the_same(
    tmp_path: Path,
) -> None:
    for song, rate in (("a", 48000), ("b", RATE)):
        for seed, stem in enumerate(TWO):
            file = tmp_path / "songs" / "train" / song / f"{stem}.wav"
            _write(file, noise(0.5, channels=1, seed=seed, rate=rate), rate)
    config = small_config(tmp_path / "songs", tmp_path)
    data = config.data.model_copy(update={"resample": True, "max_frames_per_shard": 256})
    model = config.model.model_copy(update={"sources": TWO})
    config = config.model_copy(update={"data": data, "model": model})
    first, second = make_shards(config).tracks
    mono = "every stem is mono: both channels are it"
    assert first.changes == (mono, "every stem is resampled from 48000 Hz")
    assert second.changes == (mono,)
    wanted = Wanted.of(model, data)
    other = list_tracks(tmp_path / "songs", replace(wanted, sample_rate=32000))
    tracks = list_tracks(tmp_path / "songs", wanted)
    # Both are read in one place; the hash by which scores are kept knows the rate.
    assert [source_hash(track) for track in tracks] == [first.source_sha256, second.source_sha256]
    assert source_hash(other[0]) != source_hash(tracks[0])
    peak = float(read_track(tracks[0]).sources[0].abs().max())
    assert first.levels["piano"].peak == pytest.approx(peak)


MOISES = {
    "train/uuid-1/data.json": None,
    "train/uuid-1/vocals/1.wav": 1,
    "train/uuid-1/vocals/2.wav": 2,
    "train/uuid-1/guitar/3.wav": 3,
    "train/uuid-1/bowed_strings/4.wav": 4,
}
SLAKH = {
    "train/Track00001/metadata.yaml": None,
    "train/Track00001/mix.flac": 9,
    "train/Track00001/stems/S00.flac": 1,
    "train/Track00001/stems/S01.flac": 2,
    "train/Track00001/stems/S02.flac": 3,
    "validation/Track01501/metadata.yaml": None,
    "validation/Track01501/mix.flac": 9,
    "validation/Track01501/stems/S00.flac": 1,
}
METADATA = """UUID: 1a
stems:
  S00: {audio_rendered: true, inst_class: Guitar, is_drum: false}
  S01: {audio_rendered: true, inst_class: Guitar, is_drum: false}
  S02: {audio_rendered: true, inst_class: Sound Effects, is_drum: false}
  S03: {audio_rendered: false, inst_class: Bass, is_drum: false}
"""
STEMS = {"train/vocals/x.wav": 1, "train/vocals/y.wav": 2, "train/guitar/x.wav": 3}
VALID = {"valid/song/vocals.wav": 5, "valid/song/guitar.wav": 6, "valid/song/mixture.wav": 7}
LISTED = {"train.csv": None, "far/x.wav": 1, "far/y.wav": 2, **VALID}


@pytest.mark.parametrize(
    ("files", "sources", "layout", "tracks"),
    [
        (
            MOISES,
            ("vocals", "guitar", "other"),
            "moisesdb",
            {"train/uuid-1": [[1, 2], [3], [4], []]},
        ),
        (MOISES, ("vocals", "guitar"), "moisesdb", {"train/uuid-1": [[1, 2], [3], []]}),
        (
            SLAKH,
            ("guitar", "sound_effects"),
            "slakh",
            {"train/Track00001": [[1, 2], [3], [9]], "valid/Track01501": [[1], [], [9]]},
        ),
        (
            {**STEMS, **VALID},
            ("vocals", "guitar"),
            "stems",
            {
                "train/guitar - x.wav": [[], [3], []],
                "train/vocals - x.wav": [[1], [], []],
                "train/vocals - y.wav": [[2], [], []],
                "valid/song": [[5], [6], [7]],
            },
        ),
        (
            LISTED,
            ("vocals", "guitar"),
            "csv",
            {
                "train/000001 x.wav": [[1], [], []],
                "train/000002 y.wav": [[], [2], []],
                "valid/song": [[5], [6], [7]],
            },
        ),
    ],
)
@pytest.mark.parametrize("said", [False, True])
def test_the_layouts_of_known_data_sets_are_found(
    tmp_path: Path,
    *,
    files: dict[str, int | None],
    sources: tuple[str, ...],
    layout: str,
    tracks: dict[str, list[list[int]]],
    said: bool,
) -> None:
    texts = {"metadata.yaml": METADATA, "data.json": "{}"}
    texts["train.csv"] = f"instrum,path\nvocals,far/x.wav\nguitar,{tmp_path}/far/y.wav\n"
    waves = {}
    for name, seed in files.items():
        if seed is None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(texts[Path(name).name])
        else:
            channels = 1 if name.endswith(".flac") else 2
            waves[seed] = torch.from_numpy(_noise(tmp_path / name, 400, seed, channels))
    wanted = Wanted(sources, missing_stems="silence")
    found = list_tracks(tmp_path, replace(wanted, layout=layout) if said else wanted)
    assert faults_in(tmp_path, found) == []
    assert [str(track) for track in found] == list(tracks)
    for track in found:
        audio = read_track(track)
        columns = [*audio.sources, audio.mixture]
        for column, seeds in zip(columns, tracks[str(track)], strict=True):
            if seeds:
                mono = torch.stack([waves[seed] for seed in seeds]).sum(0)
                assert torch.equal(column, mono.expand(2, -1))
            elif column is not columns[-1]:
                assert not column.any()


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        (
            "train.csv",
            "type,path\nvocals,\n",
            "line 2: lacks a value; allowed: a first line 'type,path'",
        ),
        ("train.csv", b"\xff\xfe\xff", "cannot be read"),
        ("train/a/metadata.yaml", "stems: 7", "cannot be read as Slakh's metadata"),
        ("train/a/metadata.yaml", "a: &b 1", "anchors"),
    ],
)
def test_a_damaged_list_of_stems_is_named(
    tmp_path: Path, file: str, text: str | bytes, problem: str
) -> None:
    (tmp_path / "train" / "a" / "stems").mkdir(parents=True)
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    layout = "csv" if file.endswith("csv") else None
    with pytest.raises(DataError, match=problem) as caught:
        list_tracks(tmp_path, Wanted(("vocals", "guitar"), layout=layout))
    assert str(caught.value).startswith(f"{tmp_path / file}: ")
