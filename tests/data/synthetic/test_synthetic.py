from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import musdb
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from scipy import ndimage, signal

from lasaft.config import MUSDB18_SOURCES as SOURCES
from lasaft.errors import DataError
from pipeline.data.synthetic import song as song_module
from pipeline.data.synthetic.song import Song
from pipeline.data.synthetic.writer import SongSet, begin_songs, finish_songs, song_list, write_song
from tests.helpers.songs import compose_song, make_musdb

RATE = 44100
STREAMS = ("mixture", *SOURCES)


@pytest.fixture(scope="module")
def songs() -> list[Song]:
    return [compose_song(7, index, 14.0) for index in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_musdb(tmp_path_factory.mktemp("songs") / "musdb", seconds=2.0, seed=3)


def tree(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def mono(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    return samples.mean(axis=0, dtype=np.float64)


def power(samples: NDArray[np.float32], size: int = 2048) -> tuple[NDArray, NDArray]:
    """Return frequencies [bin] and the power spectrogram [bin, frame]."""
    frequencies, _, spectrum = signal.stft(mono(samples), RATE, nperseg=size)
    return frequencies, np.abs(spectrum) ** 2


def frame_db(samples: NDArray[np.float32], seconds: float = 0.1) -> NDArray:
    """Return the level of each frame against the loudest frame, in dB."""
    size = round(seconds * RATE)
    frames = samples[:, : samples.shape[1] // size * size].reshape(2, -1, size)
    energy = np.mean(np.square(frames, dtype=np.float64), axis=(0, 2))
    return 10 * np.log10(energy / energy.max() + 1e-12)


# --- the folder


@pytest.mark.parametrize(("split", "count"), [("train", 2), ("valid", 1)])
def test_musdb_finds_each_split_through_mus_yaml(folder: Path, split: str, count: int) -> None:
    tracks = musdb.DB(
        str(folder), setup_file="mus.yaml", is_wav=True, subsets="train", split=split
    ).tracks
    assert len(tracks) == count
    for track in tracks:
        assert set(track.sources) == set(SOURCES)
        assert track.audio.shape == (2 * RATE, 2)
        assert track.rate == RATE


def test_musdb_finds_the_test_songs_and_their_targets(folder: Path) -> None:
    (track,) = musdb.DB(str(folder), setup_file="mus.yaml", is_wav=True, subsets="test").tracks
    # musdb's own linear mixture of the four stems is the stored mixture: both are exact sums.
    np.testing.assert_allclose(track.targets["linear_mixture"].audio, track.audio, atol=1e-9)
    accompaniment = sum(track.sources[name].audio for name in ("drums", "bass", "other"))
    np.testing.assert_allclose(track.targets["accompaniment"].audio, accompaniment, atol=1e-9)


def test_stored_mixture_is_the_exact_sum_of_the_stored_stems(folder: Path) -> None:
    places = [path.parent for path in folder.glob("t*/*/mixture.wav")]
    assert len(places) == 4
    for place in places:
        pcm = {name: soundfile.read(place / f"{name}.wav", dtype="int16") for name in STREAMS}
        assert {rate for _, rate in pcm.values()} == {RATE}
        total = sum(pcm[name][0].astype(np.int32) for name in SOURCES)
        np.testing.assert_array_equal(total, pcm["mixture"][0])


def test_files_hold_the_samples_of_compose_song(folder: Path) -> None:
    song = compose_song(3, 20_000, 2.0)
    stored, _ = soundfile.read(folder / "test" / song.name / "vocals.wav", dtype="float32")
    np.testing.assert_array_equal(stored.T, song.sources["vocals"])


def test_nothing_but_songs_is_left_in_the_folder(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "mus.yaml", "songs.json", "test", "train",
    ]  # fmt: skip
    assert len(list(folder.rglob("*.wav"))) == 4 * len(STREAMS)


# --- the same seed gives the same bytes


def test_order_of_writing_does_not_matter(folder: Path, tmp_path: Path) -> None:
    parameters = SongSet(train=2, valid=1, test=1, seconds=2.0, seed=3)
    for entry in reversed(begin_songs(tmp_path, parameters)):
        write_song(tmp_path, parameters, entry)
    finish_songs(tmp_path, parameters)
    assert tree(tmp_path) == tree(folder)


def test_other_process_with_other_hash_seed_and_threads_gives_the_same_samples() -> None:
    program = (
        "import hashlib; from tests.helpers.songs import compose_song\n"
        "song = compose_song(5, 9, 3.0)\n"
        "print(*(hashlib.sha256(x.tobytes()).hexdigest() for x in song.sources.values()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "2"}
    output = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    here = compose_song(5, 9, 3.0).sources.values()
    assert output.split() == [hashlib.sha256(x.tobytes()).hexdigest() for x in here]


def test_more_training_songs_leave_the_other_songs_as_they_are() -> None:
    few = song_list(SongSet(train=1, valid=1, test=2, seconds=2.0, seed=0))
    many = song_list(SongSet(train=9, valid=1, test=2, seconds=2.0, seed=0))
    assert set(few) < set(many)
    assert [entry.split for entry in few] == ["train", "valid", "test", "test"]


@pytest.mark.parametrize("other", [(8, 0), (7, 1)], ids=["seed", "index"])
def test_another_seed_or_index_is_another_song(other: tuple[int, int]) -> None:
    first, second = compose_song(7, 0, 3.0), compose_song(*other, 3.0)
    assert first.name != second.name
    for name in SOURCES:
        same = np.corrcoef(mono(first.sources[name]), mono(second.sources[name]))[0, 1]
        assert abs(same) < 0.3  # two kits or two chords may touch by chance, no more


def test_names_are_unique_and_safe_on_any_file_system() -> None:
    names = [song_module.song_name(0, index) for index in range(30_000)]
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert name.count(" - ") == 1
        assert not re.search(r'[/\\:*?"<>|\x00-\x1f]|^[ .]|[ .]$', name)
    everything = "".join(names)
    assert "." in everything
    assert not everything.isascii()


# --- interrupted, repeated, wrong


def test_interrupted_writing_goes_on_and_ends_the_same(folder: Path, tmp_path: Path) -> None:
    songs = SongSet(train=2, valid=1, test=1, seconds=2.0, seed=3)
    write_song(tmp_path, songs, begin_songs(tmp_path, songs)[0])
    assert not (tmp_path / "mus.yaml").exists()
    assert len(list(tmp_path.glob("t*/*"))) == 1
    make_musdb(tmp_path, seconds=2.0, seed=3)
    assert tree(tmp_path) == tree(folder)


def test_only_damaged_songs_are_written_again(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "musdb"
    shutil.copytree(folder, copy)
    missing, short = sorted(path for path in copy.glob("train/*"))[:2]
    (missing / "bass.wav").unlink()
    with (short / "drums.wav").open("r+b") as file:
        file.truncate(1000)
    leftover = copy / ".partial" / ".Killed - Song.tmp-1"
    leftover.mkdir(parents=True)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.wav")}
    make_musdb(copy, seconds=2.0, seed=3)
    assert tree(copy) == tree(folder)
    assert not leftover.exists()
    touched = {path.parent for path in before if path.stat().st_mtime_ns != before[path]}
    assert touched == {missing, short}


def test_song_in_the_making_is_no_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(*_: object) -> Iterator[Song]:
        yield compose_song(0, 0, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.data.synthetic.song.compose_movements", cut_short)
    with pytest.raises(KeyboardInterrupt):
        make_musdb(tmp_path)
    assert list((tmp_path / "train").iterdir()) == []


def test_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wave.Wave_write.writeframes", full)
    with pytest.raises(DataError, match=r"cannot be written: No space left on device$"):
        make_musdb(tmp_path, seconds=2.0)
    assert list((tmp_path / "train").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, r"seed=3, not 4;"),
        ({"seconds": 2.5}, r"seconds=2.0, not 2.5;"),
        ({"train": 5, "test": 2}, r"train=2, not 5; test=1, not 2;"),
    ],
)
def test_other_parameters_in_the_same_folder_are_refused(
    folder: Path, change: dict[str, float], message: str
) -> None:
    before = tree(folder)
    values = {"train": 2, "valid": 1, "test": 1, "seconds": 2.0, "seed": 3, **change}
    with pytest.raises(DataError, match=rf"songs\.json: .* made with {message}"):
        make_musdb(folder, **values)  # pyright: ignore[reportArgumentType]
    assert tree(folder) == before


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"not empty, and without a songs\.json"):
        make_musdb(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "songs.json").write_text(text)
    with pytest.raises(DataError, match=r"songs\.json: .*remove the folder"):
        make_musdb(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 0, "valid": 0, "test": 0}, "all 0, so there is no song"),
        ({"valid": -1}, "valid=-1, allowed are 0 to 9999"),
        ({"seconds": 0.5}, "seconds=0.5, allowed are 2 to 3600"),
        ({"seconds": float("nan")}, "seconds=nan, allowed are 2 to 3600"),
    ],
)
def test_values_out_of_range_are_refused(
    tmp_path: Path, change: dict[str, float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_musdb(tmp_path / "new", **change)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "new").exists()


def test_songs_that_are_missing_are_reported_by_finish(tmp_path: Path) -> None:
    parameters = SongSet(train=1, valid=0, test=0, seconds=2.0, seed=0)
    begin_songs(tmp_path, parameters)
    with pytest.raises(DataError, match="1 songs are not written yet"):
        finish_songs(tmp_path, parameters)


# --- the music


def test_nothing_clips_and_the_mixture_is_loud(songs: list[Song]) -> None:
    for song in songs:
        waves = [song.mixture, *song.sources.values()]
        assert max(np.abs(wave).max() for wave in waves) == pytest.approx(0.89, abs=1e-3)
        assert 0.08 < np.sqrt(np.mean(song.mixture**2)) < 0.35  # -22 to -9 dB, as real mixes


def test_no_source_dominates_the_mixture(songs: list[Song]) -> None:
    for song in songs:
        for name, source in song.sources.items():
            error = np.sum((song.mixture - source) ** 2, dtype=np.float64)
            sdr = 10 * np.log10(np.sum(source**2, dtype=np.float64) / error)
            assert -8 < sdr < -2.5, (song.name, name)


def test_sources_are_not_copies_of_each_other(songs: list[Song]) -> None:
    for song in songs:
        together = np.corrcoef([mono(wave) for wave in song.sources.values()])
        assert np.abs(together - np.eye(4)).max() < 0.1


def test_every_stem_pauses_while_the_song_goes_on(songs: list[Song]) -> None:
    for song in songs:
        levels = np.array([frame_db(wave) for wave in song.sources.values()])
        silent, playing = levels < -50, levels > -30
        for number, name in enumerate(song.sources):
            alone = silent[number] & (playing.sum(axis=0) >= 1)
            assert alone.sum() >= 3, (song.name, name)
            assert 0.25 < playing[number].mean() < 0.97, (song.name, name)
        # Not all at the same time: the pauses of two stems are different frames.
        assert len({row.tobytes() for row in silent}) == 4


@pytest.mark.parametrize("seconds", [2.0, 3.0])
def test_short_songs_have_every_source(seconds: float) -> None:
    for index in range(8):
        for name, source in compose_song(11, index, seconds).sources.items():
            assert source.shape == (2, round(seconds * RATE))
            assert np.sqrt(np.mean(source**2)) > 0.01, (index, name)


def test_bass_is_low(songs: list[Song]) -> None:
    for song in songs:
        frequencies, bins = power(song.sources["bass"])
        assert bins[frequencies < 300].sum() > 0.85 * bins.sum(), song.name


def test_voice_and_chords_share_their_band(songs: list[Song]) -> None:
    for song in songs:
        for name in ("vocals", "other"):
            frequencies, bins = power(song.sources[name])
            shared = bins[(frequencies > 150) & (frequencies < 4000)].sum()
            assert shared > 0.7 * bins.sum(), (song.name, name)


def test_drums_are_percussive_and_voice_and_chords_are_tonal(songs: list[Song]) -> None:
    # Fitzgerald's separation (2010): a median along time keeps tones, along frequency hits.
    def percussive_share(wave: NDArray[np.float32]) -> float:
        bins = power(wave[:, : 8 * RATE], 1024)[1][:256]  # up to 11 kHz
        tones, hits = (ndimage.median_filter(bins, size) for size in ((1, 13), (13, 1)))
        mask = hits / (hits + tones + 1e-20)
        return float((mask * bins)[12:].sum() / bins[12:].sum())  # above 500 Hz: no kick's tone

    for song in songs:
        shares = {
            name: percussive_share(song.sources[name]) for name in ("drums", "vocals", "other")
        }
        assert shares["drums"] > 0.5, shares  # white noise has 0.5
        assert max(shares["vocals"], shares["other"]) < 0.4, shares


def test_drums_reach_the_highest_band(songs: list[Song]) -> None:
    for song in songs:
        high = {}
        for name, wave in song.sources.items():
            frequencies, bins = power(wave)
            high[name] = bins[frequencies > 6000].sum() / bins.sum()
        assert high["drums"] > 3 * max(share for name, share in high.items() if name != "drums")


def sung_pitch(wave: NDArray[np.float32]) -> NDArray:
    """Return the pitch in semitones every 10 ms from autocorrelation, nan where unvoiced."""
    size, hop, low, high = 2048, 441, RATE // 900, RATE // 80
    frames = np.lib.stride_tricks.sliding_window_view(mono(wave), size)[::hop] * np.hanning(size)
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), 2 * size)) ** 2)[:high]
    lags = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * size, axis=1)) ** 2, axis=1)[:, :high]
    lags /= np.maximum(lags[:, :1], 1e-9) * (window / window[0])
    # The first lag that is nearly as good as the best is the period, not a multiple of it.
    inside = lags[:, low:]
    best = inside.max(axis=1)
    peaks = (inside[:, 1:-1] >= inside[:, :-2]) & (inside[:, 1:-1] >= inside[:, 2:])
    first = np.argmax(peaks & (inside[:, 1:-1] > 0.93 * best[:, None]), axis=1) + 1 + low
    rows = np.arange(len(lags))
    before, here, after = lags[rows, first - 1], lags[rows, first], lags[rows, first + 1]
    shift = 0.5 * (before - after) / np.minimum(before - 2 * here + after, -1e-9)
    pitch = 12 * np.log2(RATE / (first + np.clip(shift, -1, 1)))
    quiet = np.mean(frames**2, axis=1) < 0.02 * np.mean(frames**2, axis=1).max()
    return np.where((best < 0.8) | quiet, np.nan, pitch)


def test_voice_is_harmonic_and_its_held_notes_have_vibrato(songs: list[Song]) -> None:
    swings = []
    for song in songs:
        pitch = sung_pitch(song.sources["vocals"])
        voiced = ~np.isnan(pitch)
        assert voiced.mean() > 0.25, song.name
        for note in np.lib.stride_tricks.sliding_window_view(pitch, 64)[::8]:  # 0.64 s
            if not np.isnan(note).any() and 0.5 < np.ptp(note) < 1.8:
                swing = signal.detrend(note) * np.hanning(64)
                swings.append(np.abs(np.fft.rfft(swing, 512)) ** 2)
    assert len(swings) > 20
    rates = np.fft.rfftfreq(512, 0.01)[np.argmax(swings, axis=1)]
    # Singers swing 4 to 7 times a second. Without vibrato three notes are left, none in here.
    assert np.mean((rates > 3.5) & (rates < 7.5)) > 0.5
    assert 4 < np.median(rates) < 7


def test_vowels_change_the_spectrum_of_the_voice(songs: list[Song]) -> None:
    for song in songs:
        frequencies, bins = power(song.sources["vocals"])
        loud = bins[:, bins.sum(axis=0) > 0.05 * bins.sum(axis=0).max()]
        low = loud[(frequencies > 200) & (frequencies < 1000)].sum(axis=0)
        high = loud[(frequencies > 1000) & (frequencies < 3500)].sum(axis=0)
        ratio_db = np.sort(10 * np.log10(high / low))
        tenth = ratio_db.size // 10
        assert ratio_db[-tenth] - ratio_db[tenth] > 6, (
            song.name
        )  # dB between an open and a closed mouth


def test_chords_are_wider_than_the_bass(songs: list[Song]) -> None:
    for song in songs:
        width = {name: np.corrcoef(wave[0], wave[1])[0, 1] for name, wave in song.sources.items()}
        assert width["bass"] > 0.95
        assert width["other"] < 0.9


def test_long_songs_are_medleys_of_the_wanted_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(song_module, "_LONGEST_MOVEMENT_SECONDS", 1.5)
    make_musdb(tmp_path, train=1, valid=0, test=0, seconds=4.01, seed=2)
    song = compose_song(2, 0, 4.01)
    stored, _ = soundfile.read(tmp_path / "train" / song.name / "mixture.wav", dtype="float32")
    assert stored.shape == (round(4.01 * RATE), 2)
    np.testing.assert_array_equal(stored.T, song.mixture)
    first, second = song.mixture[:, :RATE], song.mixture[:, round(4.01 * RATE / 3) :][:, :RATE]
    assert abs(np.corrcoef(mono(first), mono(second))[0, 1]) < 0.3
