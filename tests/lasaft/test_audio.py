"""Audio files and resampling."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from lasaft import audio as audio_files
from lasaft.audio import AudioReader, AudioWriter, Encoding, read_audio, resample
from lasaft.errors import AudioError, ConfigError
from tests.helpers.audio import RATE, noise, read, tone, write, write_audio


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_every_readable_format_gives_what_soundfile_gives(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, tone(440, 0.5))
    audio, rate = read_audio(path)
    assert rate == RATE
    assert np.array_equal(audio, read(path))


def test_blocks_put_together_are_the_file(tmp_path: Path) -> None:
    audio = noise(2, 10_001)
    with AudioReader(write(tmp_path / "a.wav", audio)) as reader:
        blocks = list(reader.blocks(1000))
    assert {block.shape[1] for block in blocks} == {1000, 1}
    assert np.array_equal(np.concatenate(blocks, axis=1), audio)


@pytest.mark.parametrize(
    ("encoding", "tolerance"),
    [
        (Encoding("wav"), 0.0),
        (Encoding("wav", "24"), 2**-23),
        (Encoding("wav", "16"), 2**-15),
        (Encoding("flac"), 2**-23),
        (Encoding("flac", "16"), 2**-15),
    ],
)
def test_written_audio_is_exact_to_one_step_of_the_format(
    tmp_path: Path, encoding: Encoding, tolerance: float
) -> None:
    audio = noise(2, 5000)
    write_audio(tmp_path / "a", audio, 48000, encoding)
    assert soundfile.info(tmp_path / "a").subtype == encoding.subtype
    assert np.abs(read(tmp_path / "a") - audio).max() <= tolerance


def test_mp3_keeps_a_tone_and_the_length(tmp_path: Path) -> None:
    audio = tone(440, 1.0)
    write_audio(tmp_path / "a", audio, RATE, Encoding("mp3"))
    back = read(tmp_path / "a")
    assert back.shape == audio.shape
    error = ((back - audio)[:, 2000:-2000] ** 2).mean() / (audio**2).mean()
    assert error < 1e-3  # a lossy codec: 30 dB is far above any misalignment


def test_float_wav_keeps_values_above_full_scale_and_counts_no_clipping(tmp_path: Path) -> None:
    audio = 4 * tone(440, 0.1)
    writer = write_audio(tmp_path / "a", audio, RATE, Encoding("wav"))
    assert np.array_equal(read(tmp_path / "a"), audio)
    assert writer.clipped == 0
    assert writer.peak == pytest.approx(2.0, abs=1e-3)


def test_clipped_values_of_an_integer_format_are_counted(tmp_path: Path) -> None:
    audio = np.array([[0.5, 1.5, -2.0, 1.0]], np.float32)
    writer = write_audio(tmp_path / "a", audio, RATE, Encoding("wav", "16"))
    assert (writer.clipped, writer.peak) == (2, 2.0)
    assert read(tmp_path / "a")[0].tolist() == pytest.approx([0.5, 1, -1, 1], abs=2**-14)


@pytest.mark.parametrize("format", ["wav", "flac", "mp3"])
def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path, format: str) -> None:
    audio = np.zeros((2, 3000), np.float32)
    audio[1, 2000] = np.nan
    with pytest.raises(AudioError, match=r"a \(not written\): holds a value .* at sample 2000"):
        write_audio(tmp_path / "a", audio, 44100, Encoding(format))


@pytest.mark.parametrize("format", ["flac", "mp3"])
def test_the_loudest_values_are_clipped_not_fatal(tmp_path: Path, format: str) -> None:
    noise = np.random.default_rng(0).standard_normal((2, 44100)).astype(np.float32)
    writer = write_audio(tmp_path / "a", noise * np.float32(1e30), 44100, Encoding(format))
    assert writer.clipped == noise.size
    audio, _ = read_audio(tmp_path / "a")
    assert np.abs(audio).max() > 0.9


@pytest.mark.parametrize("step", ["open", "write", "close"])
def test_ctrl_c_while_libsndfile_calls_back_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    real, presses = audio_files._Sink.write, [step]

    def press(self: Any, data: Any) -> int:
        if presses == [now]:
            presses.clear()
            signal.raise_signal(signal.SIGINT)
        return real(self, data)

    monkeypatch.setattr(audio_files._Sink, "write", press)
    now = "open"
    with (
        pytest.raises(KeyboardInterrupt),
        AudioWriter(tmp_path / "a.wav", RATE, 2, Encoding("wav", "24")) as writer,
    ):
        now = "write"
        writer.write(noise(2, 1 << 17))
        now = "close"
    assert (now, presses) == (step, [])


@pytest.mark.parametrize("format", ["wav", "flac", "mp3"])
@pytest.mark.parametrize("lacking", [1, 600])
def test_a_disk_that_is_full_before_the_last_byte_is_an_error(
    tmp_path: Path, format: str, lacking: int
) -> None:
    path, audio = tmp_path / f"a.{format}", noise(2, 57_330, scale=0.1)
    write_audio(path, audio, RATE, Encoding(format))
    size = path.stat().st_size
    path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - lacking, hard))
    try:
        with pytest.raises(
            AudioError, match=rf"a\.{format}: cannot be written: (File too|No space)"
        ):
            write_audio(path, audio, RATE, Encoding(format))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_wav_files_beyond_4_gib_become_rf64() -> None:
    hour = 3600 * RATE
    assert Encoding("wav").container(3 * hour, 2) == "WAV"
    assert Encoding("wav").container(4 * hour, 2) == "RF64"
    assert Encoding("wav", "16").container(4 * hour, 2) == "WAV"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("aac",), "format: got 'aac', allowed: wav, flac, mp3"),
        (("flac", "32f"), "bits: got '32f' with format flac: 24, 16"),
        (("mp3", "16"), "bits: got '16' with format mp3: no such option"),
    ],
)
def test_a_format_that_does_not_exist_is_rejected(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Encoding(*arguments)


def test_mp3_with_a_sample_rate_it_does_not_have_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mp3 has no sample rate of 96000 Hz"):
        AudioWriter(tmp_path / "a", 96000, 2, Encoding("mp3"))


def test_text_named_wav_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "words.wav"
    path.write_text("these are words, not samples")
    with pytest.raises(AudioError, match=r"words\.wav: is not an audio file that can be read"):
        AudioReader(path)


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("film.mp4", b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41", "MP4"),
        # libsndfile would look for MPEG frames in it, and find some.
        ("film.mp3", b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41", "MP4"),
        ("film.avi", b"RIFF\x00\x10\x00\x00AVI LIST", "AVI"),
        ("film.mkv", b"\x1aE\xdf\xa3\x01\x00\x00\x00", "Matroska"),
    ],
)
def test_a_video_file_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: bytes, kind: str
) -> None:
    path = tmp_path / name
    path.write_bytes(head + bytes(4000))
    message = rf"{name}: is not an audio file .*\(wav, flac, mp3, ogg\): it is {kind}"
    if shutil.which("ffmpeg"):
        with pytest.raises(AudioError, match=f"{message}.*, and ffmpeg says: .+"):
            AudioReader(path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioError, match=f"{message}.*, which needs ffmpeg on PATH"):
        AudioReader(path)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_a_film_without_a_sound_track_and_an_empty_file_say_so(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=d=0.1:s=16x16", str(film)]
    subprocess.run(command, check=True)
    with pytest.raises(AudioError, match=r"film\.mp4: .*: it is MP4 without a sound track$"):
        AudioReader(film)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=r"empty\.wav: .*: it is empty$"):
        AudioReader(tmp_path / "empty.wav")


def test_a_file_without_read_permission_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "song.wav", noise(2, 100))

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "open", refuse)  # root may read every file
    with pytest.raises(AudioError, match=r"song\.wav: cannot be read: Permission denied$"):
        AudioReader(path)


def test_a_file_name_need_not_be_unicode(tmp_path: Path) -> None:
    path = write(tmp_path / "song.wav", noise(2, 100)).rename(tmp_path / os.fsdecode(b"\xff.wav"))
    assert read_audio(path)[0].shape == (2, 100)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="does not exist"):
        AudioReader(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="is a folder"):
        AudioReader(tmp_path)


def test_a_file_without_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"holds no audio \(0 samples\)"):
        AudioReader(write(tmp_path / "a.wav", noise(2, 0)))


def test_a_damaged_flac_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", noise(2, 50_000))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(bytes(data))
    with pytest.raises(AudioError, match=r"a\.flac: is damaged"):
        read_audio(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_an_error_with_its_place(
    tmp_path: Path, value: float
) -> None:
    audio = noise(2, 3 * RATE)
    audio[1, 2 * RATE] = value
    path = write(tmp_path / "a.wav", audio)
    with pytest.raises(AudioError, match=r"a\.wav: .*at sample 88200 \(2\.000 s\)"):
        read_audio(path)


@pytest.mark.parametrize(("rate_in", "rate_out"), [(48000, 44100), (22050, 44100), (44100, 8000)])
def test_resampling_in_blocks_equals_resampling_at_once(rate_in: int, rate_out: int) -> None:
    audio = noise(2, 20_000)
    whole = soxr.resample(audio.T, rate_in, rate_out).T
    for size in (1, 977, 20_000):
        blocks = np.split(audio, range(size, 20_000, size), axis=1)
        parts = np.concatenate(list(resample(blocks, rate_in, rate_out)), axis=1)
        assert np.array_equal(parts, whole)


def test_a_tone_passes_the_resampler_and_keeps_its_pitch() -> None:
    audio = tone(1000, 1.0, 48000)
    result = np.concatenate(list(resample([audio], 48000, 44100)), axis=1)
    wanted = tone(1000, 1.0, 44100)
    inner = slice(2000, -2000)  # the filter rings where the tone begins and ends
    assert np.abs(result[:, inner] - wanted[:, inner]).max() < 1e-4


def test_one_sample_rate_leaves_the_blocks_alone() -> None:
    blocks = [noise(2, 100), noise(2, 5)]
    assert [id(block) for block in resample(blocks, 44100, 44100)] == [id(b) for b in blocks]
