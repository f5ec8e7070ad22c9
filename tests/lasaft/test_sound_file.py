"""Sound files whose headers are wrong about their length are read whole, and it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lasaft.audio import AudioReader, Samples, read_audio
from lasaft.errors import AudioError
from lasaft.sound_file import Pieces
from tests.helpers.audio import RATE, noise, read, tone, write

# An MP3 decoder gives whole frames: of 1152 samples here.
FRAME = 1152
DELAY = 576 + 529  # samples that encoder and decoder put before the sound


@pytest.fixture
def mp3(tmp_path: Path) -> bytes:
    """A file of 5 s in which the first second has much higher bit rates than the others."""
    song = np.concatenate([noise(2, RATE, scale=0.3).clip(-1, 1), tone(220, 4) / 5], axis=1)
    options = {"subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.3}
    return write(tmp_path / "whole.mp3", song, **options).read_bytes()


def _read(path: Path, data: bytes) -> tuple[Samples, AudioReader]:
    path.write_bytes(data)
    with AudioReader(path) as reader:
        audio = reader.whole()
    assert audio.shape[1] == reader.frames
    return audio, reader


def _with(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _id3(size: int) -> bytes:
    """A tag at the front, with a picture in it that looks like the beginnings of frames."""
    body = b"\xff\xfb\x90\x64" * size
    return b"ID3\x03\0\0" + bytes((len(body) >> shift) & 127 for shift in (21, 14, 7, 0)) + body


APE = b"APETAGEX" + bytes(24) + bytes(range(256)) * 20 + b"APETAGEX" + bytes(24)
ID3_AT_THE_END = b"TAG" + b"x" * 125


def test_a_whole_mp3_is_read_as_the_decoder_reads_it(tmp_path: Path, mp3: bytes) -> None:
    audio, reader = _read(tmp_path / "a.mp3", mp3)
    assert np.array_equal(audio, read(tmp_path / "a.mp3"))
    assert (audio.shape[1], reader.note) == (5 * RATE, "")


def test_an_mp3_without_the_tag_of_its_length_is_read_whole(tmp_path: Path, mp3: bytes) -> None:
    known, path = read_audio(tmp_path / "whole.mp3")[0], tmp_path / "a.mp3"
    at = mp3.index(b"Xing")
    for bare in (_with(mp3, at, bytes(4)), mp3[417:]):  # a blank frame in its place, or none
        audio, reader = _read(path, bare)
        # The silence that the encoder put at both ends is known from the tag alone.
        assert 5 * RATE <= audio.shape[1] <= 5 * RATE + 3 * FRAME
        assert audio.shape[1] % FRAME == 0
        start = audio.shape[1] - known.shape[1]
        fit = [np.abs(audio[:, k : k + RATE] - known[:, :RATE]).max() for k in range(start)]
        assert min(fit) < 0.5  # the first frame may lack what it borrows from the one before it
        assert reader.note == ""
    with soundfile.SoundFile(path) as theirs:
        assert theirs.frames < 3 * RATE  # what libsndfile takes to be all


def test_an_mp3_whose_tag_says_0_frames_is_read_whole(tmp_path: Path, mp3: bytes) -> None:
    at = mp3.index(b"Xing") + 8
    audio, reader = _read(tmp_path / "a.mp3", _with(mp3, at, bytes(4)))
    assert np.array_equal(audio, read_audio(tmp_path / "whole.mp3")[0])
    assert reader.note == ""


def test_a_fraunhofer_tag_is_no_sound_and_its_promise_counts(tmp_path: Path, mp3: bytes) -> None:
    frames = len(_read(tmp_path / "a.mp3", mp3[417:])[0][0]) // FRAME
    tag = b"VBRI\0\x01\0\0\0\x4b" + len(mp3).to_bytes(4, "big") + frames.to_bytes(4, "big")
    vbri = _with(mp3, 36, tag + bytes(160))
    audio, reader = _read(tmp_path / "a.mp3", vbri)
    assert (audio.shape[1], reader.note) == (frames * FRAME, "")
    _, reader = _read(tmp_path / "a.mp3", vbri[: len(mp3) // 2])
    lacking = len(mp3) - len(mp3) // 2
    assert lacking <= reader.missing_bytes < lacking + 1500


def test_joined_mp3s_with_their_tags_are_read_to_the_end(tmp_path: Path, mp3: bytes) -> None:
    known = read_audio(tmp_path / "whole.mp3")[0]
    joined = _id3(3000) + mp3 + ID3_AT_THE_END + _id3(500) + mp3 + APE + ID3_AT_THE_END
    audio, reader = _read(tmp_path / "a.mp3", joined)
    # No tag is sound, nor what is between; the first says what to leave out in front.
    both = 2 * len(_read(tmp_path / "b.mp3", mp3[417:])[0][0])
    assert audio.shape[1] == both - DELAY
    assert np.array_equal(audio[:, : 5 * RATE], known)
    start = audio.shape[1] - known.shape[1] - 2 * FRAME
    middle = known[:, 2 * RATE : 3 * RATE]
    fit = [
        np.abs(audio[:, 2 * RATE + k :][:, :RATE] - middle).max()
        for k in range(start, start + 2 * FRAME)
    ]
    assert min(fit) < 1e-3
    assert reader.note == ""


def test_an_mp3_far_behind_its_tag_is_found(tmp_path: Path, mp3: bytes) -> None:
    audio, reader = _read(tmp_path / "a.mp3", _id3(100) + bytes(100_000) + mp3)
    assert np.array_equal(audio, read_audio(tmp_path / "whole.mp3")[0])
    assert reader.note == ""


def test_a_tag_that_would_end_behind_the_file_hides_no_sound(tmp_path: Path, mp3: bytes) -> None:
    tag = _id3(100)[:6] + b"\x7f\x7f\x7f\x7f"
    known = _read(tmp_path / "a.mp3", mp3 + mp3)[0]
    assert np.array_equal(_read(tmp_path / "b.mp3", mp3 + tag + mp3)[0], known)
    assert np.array_equal(_read(tmp_path / "c.mp3", tag + mp3 + mp3)[0], known)


def test_the_tags_of_joined_mp3s_promise_together(tmp_path: Path, mp3: bytes) -> None:
    _, reader = _read(tmp_path / "a.mp3", mp3 + mp3[: len(mp3) // 2])
    lacking = len(mp3) - len(mp3) // 2
    assert lacking <= reader.missing_bytes < lacking + 1500
    audio, reader = _read(tmp_path / "b.mp3", mp3[417:] + mp3)  # the second alone has one
    assert (audio.shape[1] % FRAME, reader.note) == (0, "")


@pytest.mark.parametrize("data", [_id3(1) + bytes(1000), b"\xff\xfb\x90\x64" + bytes(200)])
def test_no_decoder_speaks_of_what_is_no_sound(
    tmp_path: Path, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AudioError, match=r"a\.mp3: .*Format not recognised"):
        _read(tmp_path / "a.mp3", data)
    assert capfd.readouterr().err == ""


def test_an_mp3_that_broke_off_is_read_as_far_as_it_goes_and_told(
    tmp_path: Path, mp3: bytes
) -> None:
    half = mp3[: len(mp3) // 2]
    audio, reader = _read(tmp_path / "a.mp3", half)
    assert np.array_equal(audio, read(tmp_path / "a.mp3"))
    lacking = len(mp3) - len(half)
    assert lacking <= reader.missing_bytes < lacking + 1500  # a part of a frame is no sound
    assert reader.note.startswith(f"is cut short: {reader.missing_bytes} bytes are missing")


def test_mp3s_of_two_kinds_in_one_file_are_an_error(tmp_path: Path, mp3: bytes) -> None:
    other = write(tmp_path / "b.mp3", tone(440, 1, rate=48000), rate=48000).read_bytes()
    message = r"a\.mp3: .*goes from 44100 Hz, 2 channels to 48000 Hz, 2 channels after 19\d MPEG"
    with pytest.raises(AudioError, match=message):
        _read(tmp_path / "a.mp3", mp3 + other)


@pytest.mark.timeout(20)
def test_a_file_of_beginnings_of_frames_ends_soon(tmp_path: Path, mp3: bytes) -> None:
    with pytest.raises(AudioError, match=r"a\.mp3: .*hardly anything but beginnings of MPEG"):
        _read(tmp_path / "a.mp3", mp3 + b"\xff\xfb\x90\x64" * 20_000_000)


@pytest.mark.parametrize("rate", [8000, 22050, 32000, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_version_of_mp3_is_read_whole(tmp_path: Path, rate: int, channels: int) -> None:
    frame = FRAME if rate >= 32000 else FRAME // 2
    song = noise(channels, 3 * rate)
    data = bytearray(write(tmp_path / "a.mp3", song, rate).read_bytes())
    assert read_audio(tmp_path / "a.mp3")[0].shape == song.shape
    at = data.index(b"LAME") - 120
    data[at : at + 4] = bytes(4)
    audio, _ = _read(tmp_path / "b.mp3", bytes(data))
    assert audio.shape[1] % frame == 0
    assert 3 * rate <= audio.shape[1] <= 3 * rate + 5 * frame


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_16"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_whose_writer_died_is_read_to_its_end(
    tmp_path: Path, subtype: str, channels: int
) -> None:
    song = noise(channels, 1000)
    whole = write(tmp_path / "a.wav", song, subtype=subtype).read_bytes()
    at = whole.index(b"data") + 4
    for riff in (0, 36):
        data = _with(_with(whole, 4, riff.to_bytes(4, "little")), at, bytes(4))
        audio, reader = _read(tmp_path / "b.wav", data)
        assert np.array_equal(audio, read(tmp_path / "a.wav"))
        assert (
            reader.note == "its header leaves the length open: all 0.0 s that are there were read"
        )


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_the_sizes_that_stand_for_none_are_no_promise(tmp_path: Path, size: int) -> None:
    whole = write(tmp_path / "a.wav", noise(2, 1000)).read_bytes()
    at = whole.index(b"data") + 4
    for riff in (size, (size + 36) % 2**32, len(whole) - 8):
        data = _with(_with(whole, 4, riff.to_bytes(4, "little")), at, size.to_bytes(4, "little"))
        audio, reader = _read(tmp_path / "b.wav", data)
        assert np.array_equal(audio, read(tmp_path / "a.wav"))
        assert (reader.missing_bytes, "open" in reader.note) == (0, True)


@pytest.mark.parametrize("format", ["WAV", "RF64"])
def test_what_a_wav_file_lacks_is_counted_to_the_end_of_its_sound(
    tmp_path: Path, format: str
) -> None:
    whole = write(tmp_path / "a.wav", noise(2, 1000), format=format).read_bytes()
    assert _read(tmp_path / "b.wav", whole)[1].missing_bytes == 0
    assert _read(tmp_path / "b.wav", whole[:-100])[1].missing_bytes == 100


def test_a_wav_that_says_2_gb_is_told_and_one_that_counts_wrongly_is_not(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.wav", noise(2, 1000)).read_bytes()
    at = whole.index(b"data") + 4
    data = _with(whole, at, (2 * 10**9).to_bytes(4, "little"))
    assert _read(tmp_path / "b.wav", data)[1].missing_bytes == 2 * 10**9 - 8000
    longer = _with(whole, 4, (len(whole) + 30).to_bytes(4, "little"))
    assert _read(tmp_path / "b.wav", longer)[1].note == ""


def _data_size(whole: bytes, size: int) -> bytes:
    return _with(whole, whole.index(b"data") + 4, size.to_bytes(4, "little"))


@pytest.mark.parametrize("format", ["WAV", "RF64"])
def test_a_wav_that_holds_more_than_it_says_is_read_to_its_end(tmp_path: Path, format: str) -> None:
    song = noise(2, 100_000)
    whole = write(tmp_path / "a.wav", song, format=format).read_bytes()
    for size in (4000, 4001):
        data = _with(_data_size(whole, size), 4, (size + 36).to_bytes(4, "little"))
        if format == "RF64":
            data = _with(whole, 28, size.to_bytes(8, "little"))
        audio, reader = _read(tmp_path / "b.wav", _id3(3) + data)
        assert np.array_equal(audio, read(tmp_path / "a.wav"))
        assert reader.note == (
            f"its header says {size} bytes of sound: all 2.3 s that are there were read"
        )


@pytest.mark.parametrize("size", [0, 4000, 0xFFFFFFFF])
@pytest.mark.parametrize("name", [b"bext", b"iXML", b"LIST", b"junk", b"id3 ", b"fact"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "MS_ADPCM"])
def test_chunks_of_odd_length_before_the_sound_are_passed_over(
    tmp_path: Path, subtype: str, name: bytes, size: int
) -> None:
    song = noise(2, 50_000, scale=0.1)
    whole = write(tmp_path / "a.wav", song, subtype=subtype).read_bytes()
    at = whole.index(b"data")
    odd = name + (7).to_bytes(4, "little") + b"1234567\0"
    data = whole[:at] + odd + b"data" + size.to_bytes(4, "little") + whole[at + 8 :]
    audio, reader = _read(tmp_path / "b.wav", _with(data, 4, size.to_bytes(4, "little")))
    assert np.array_equal(audio, read(tmp_path / "a.wav"))
    assert reader.note.startswith("its header says 4000" if size == 4000 else "its header leaves")


@pytest.mark.parametrize("size", [0, 4000, 400_000, 500_000, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("mark", [b"RF64", b"BW64"])
def test_wavs_of_64_bits_are_read_whole_or_told(tmp_path: Path, mark: bytes, size: int) -> None:
    song = noise(2, 50_000)
    whole = write(tmp_path / "a.wav", song, format="RF64", subtype="FLOAT").read_bytes()
    audio, reader = _read(
        tmp_path / "b.wav", mark + _with(whole, 28, size.to_bytes(8, "little"))[4:]
    )
    assert np.array_equal(audio, read(tmp_path / "a.wav"))
    assert reader.missing_bytes == (100_000 if size == 500_000 else 0)
    assert (reader.note == "") == (size == 400_000)


@pytest.mark.parametrize(
    "behind",
    [b"LIST\x14\0\0\0INFOISFT" + bytes(12), b"id3 \x03\0\0\0abc", ID3_AT_THE_END, APE, bytes(5000)],
)
def test_what_lies_behind_the_sound_of_a_wav_is_no_sound(tmp_path: Path, behind: bytes) -> None:
    whole = write(tmp_path / "a.wav", noise(1, 1001), subtype="PCM_24").read_bytes()
    for pad in (b"", b"\0"):
        audio, reader = _read(tmp_path / "b.wav", whole[: 44 + 3003] + pad + behind)
        assert np.array_equal(audio, read(tmp_path / "a.wav"))
        assert reader.note == ""


def test_a_wav_longer_than_its_header_can_say_is_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(2, 1000), subtype="PCM_16")
    path.write_bytes(_with(_data_size(path.read_bytes(), 0), 4, bytes(4)))
    with path.open("r+b") as file:
        file.truncate(5 * 2**30)  # of which nothing is stored
    assert AudioReader(path).frames == (5 * 2**30 - 44) // 4


def _flac_count(data: bytes, samples: int) -> bytes:
    """Put the number of all samples into a FLAC header."""
    return _with(data, 21, bytes([data[21] & 0xF0]) + samples.to_bytes(4, "big"))


def _in_ogg(flac: bytes) -> bytes:
    """Put a FLAC file into pages of an Ogg file, with no sums and no positions."""
    at = 4
    while not flac[at] & 0x80:
        at += 4 + int.from_bytes(flac[at + 1 : at + 4], "big")
    at += 4 + int.from_bytes(flac[at + 1 : at + 4], "big")
    first = b"\x7fFLAC\x01\0\0\0" + flac[:42]
    parts = [first, flac[42:at], *(flac[n : n + 9000] for n in range(at, len(flac), 9000))]
    pages = b""
    for number, part in enumerate(parts):
        sizes = bytes([255] * (len(part) // 255) + [len(part) % 255])
        flags = bytes([0, 2 if number == 0 else 0])
        pages += b"OggS" + flags + bytes(20) + bytes([len(sizes)]) + sizes + part
    return pages


@pytest.mark.parametrize("wrap", [bytes, _in_ogg], ids=["bare", "in Ogg"])
@pytest.mark.parametrize("behind", [b"", ID3_AT_THE_END, APE, bytes(300_000)])
@pytest.mark.parametrize("said", [0, 30_000, 100_000])
def test_a_flac_is_read_to_its_end_whatever_it_says_and_is_behind_it(
    tmp_path: Path, wrap: Callable[[bytes], bytes], behind: bytes, said: int
) -> None:
    whole = write(tmp_path / "a.flac", noise(2, 100_000)).read_bytes()
    for before in (b"", _id3(3)):
        data = before + wrap(_flac_count(whole, said)) + behind
        audio, reader = _read(tmp_path / "b.flac", data)
        assert np.array_equal(audio, read(tmp_path / "a.flac"))
        header = {0: "leaves the length open", 30_000: "says 30000 samples"}.get(said)
        note = f"its header {header}: all 2.3 s that are there were read" if header else ""
        assert (reader.note, reader.missing_bytes) == (note, 0)


@pytest.mark.parametrize("wrap", [bytes, _in_ogg], ids=["bare", "in Ogg"])
def test_a_flac_that_lacks_some_is_told_or_an_error(
    tmp_path: Path, wrap: Callable[[bytes], bytes]
) -> None:
    whole = write(tmp_path / "a.flac", noise(2, 100_000)).read_bytes()
    audio, reader = _read(tmp_path / "b.flac", wrap(_flac_count(whole, 120_000)))
    assert audio.shape[1] == 100_000
    assert reader.note.startswith("is cut short: ")
    for said in (0, 100_000):
        data = wrap(_flac_count(whole, said))
        with pytest.raises(AudioError, match=r"b\.flac: is damaged after 0\.0 s"):
            _read(tmp_path / "b.flac", data[: len(data) // 2])


@pytest.mark.parametrize("name", ["a.flac", "a.ogg"])
def test_joined_files_of_which_the_first_alone_would_be_read_are_refused(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name, noise(2, 100_000))
    assert AudioReader(path).note == ""
    data = path.read_bytes()
    # A program that strips a FLAC leaves it one block of metadata, which is the last then.
    for second in (data, data.replace(b"fLaC\0", b"fLaC\x80")):
        path.write_bytes(data + second)
        with pytest.raises(AudioError, match=rf"{name}: holds several streams in one file"):
            AudioReader(path)


def test_a_sound_that_cannot_be_read_to_its_end_is_an_error(
    tmp_path: Path, mp3: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = AudioReader(tmp_path / "whole.mp3")

    def fail(self: Pieces, *arguments: object) -> bytes:
        self.error = OSError(5, "Input/output error")
        return b""

    monkeypatch.setattr(Pieces, "_part", fail)
    with reader, pytest.raises(AudioError, match=r"whole\.mp3: is damaged after 0\.0 s"):
        reader.whole()
