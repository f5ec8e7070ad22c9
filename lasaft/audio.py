"""Reads audio files block by block (wav, flac, mp3, ogg) and writes them (wav, flac, mp3)."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from lasaft.errors import AudioError, ConfigError
from lasaft.ffmpeg import decoded
from lasaft.files import no_file
from lasaft.interrupts import held
from lasaft.sound_file import SEVERAL, holds_several, open_sound

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Samples = NDArray[np.float32]

BLOCK_SAMPLES = 1 << 16
READABLE = "wav, flac, mp3, ogg"
ENDINGS = ("wav", "flac", "mp3", "ogg", "oga", "opus", "aif", "aiff", "m4a", "aac", "mp4", "webm")
# format -> bits -> libsndfile's name; the first is the default.
SUBTYPES = {
    "wav": {"32f": "FLOAT", "24": "PCM_24", "16": "PCM_16"},
    "flac": {"24": "PCM_24", "16": "PCM_16"},
    "mp3": {"": "MPEG_LAYER_III"},
}
# By the least sample rate, the bit rates of MPEG 1, 2 and 2.5.
_MP3_KBITS = {32000: (32, 320), 16000: (8, 160), 8000: (8, 64)}
MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# A RIFF header counts in 32 bits; the rest is room for the other chunks.
_WAV_LIMIT_BYTES = 2**32 - 2**16


@dataclass(frozen=True)
class Encoding:
    """How audio is written.

    Args:
        format: ``wav``, ``flac`` or ``mp3``.
        bits: ``16``, ``24`` or (wav only) ``32f``; empty: the format's default.
        bitrate: of mp3, in kbit/s (default: variable).

    Raises:
        ConfigError: the format does not exist or does not have these bits, or no bit rate.
    """

    format: str = "wav"
    bits: str = ""
    bitrate: int | None = None

    def __post_init__(self) -> None:
        if self.format not in SUBTYPES:
            raise ConfigError(f"format: got {self.format!r}, allowed: {', '.join(SUBTYPES)}")
        if self.bits and self.bits not in SUBTYPES[self.format]:
            allowed = ", ".join(SUBTYPES[self.format]) or "no such option"
            raise ConfigError(f"bits: got {self.bits!r} with format {self.format}: {allowed}")
        if self.bitrate is not None and self.format != "mp3":
            raise ConfigError(f"bitrate: has no effect with format {self.format}; leave it out")

    @property
    def subtype(self) -> str:
        """libsndfile's name of the sample format."""
        subtypes = SUBTYPES[self.format]
        return subtypes[self.bits or next(iter(subtypes))]

    @property
    def clips(self) -> bool:
        """Values beyond ±1 are cut off."""
        return self.subtype != "FLOAT"

    def check(self, sample_rate: int, channels: int) -> None:
        """Raise a ConfigError if the format cannot hold this sample rate or channel count."""
        if self.format == "mp3" and sample_rate not in MP3_RATES_HZ:
            rates = ", ".join(map(str, MP3_RATES_HZ))
            raise ConfigError(f"format: mp3 has no sample rate of {sample_rate} Hz, only {rates}")
        most = {"mp3": 2, "flac": 8}.get(self.format, 1024)
        if channels > most:
            raise ConfigError(f"format: {self.format} holds {most} channels, not {channels}")
        self.compression(sample_rate)

    def compression(self, sample_rate: int) -> dict[str, Any]:
        """Return what libsndfile is told of the bit rate: its place in the rate's range."""
        if self.format != "mp3" or self.bitrate is None:
            return {}
        low, high = next(span for least, span in _MP3_KBITS.items() if sample_rate >= least)
        if not low <= self.bitrate <= high:
            raise ConfigError(
                f"bitrate: got {self.bitrate}, allowed at {sample_rate} Hz: from {low} to {high}"
            )
        level = (high - self.bitrate) / (high - low)
        return {"compression_level": level, "bitrate_mode": "CONSTANT"}

    def container(self, frames: int, channels: int) -> str:
        """Return libsndfile's name of the file format: wav files beyond 4 GiB become RF64."""
        width = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}.get(self.subtype, 0)
        big = self.format == "wav" and frames * channels * width > _WAV_LIMIT_BYTES
        return "RF64" if big else self.format.upper()


class _AudioFile:
    """An open file that a ``with`` block closes."""

    _file: soundfile.SoundFile

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AudioReader(_AudioFile):
    """An audio file that is read block by block; use as a context manager.

    Attributes:
        sample_rate: in Hz.
        channels: their number.
        frames: samples per channel.
        missing_bytes: how many bytes of sound its header promises that are not there.
        note: what a user should know of its length, once it has been read; else empty.

    Raises:
        AudioError: the file is missing, not audio, empty, or several files in one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise AudioError(f"{path}: {no_file(path)}, give an audio file ({READABLE})")
        refusal = f"{path}: is not an audio file that can be read ({READABLE})"
        try:
            with decoded(path) as (readable, said):
                self._file = self._sound = open_sound(readable)
                several = holds_several(readable)
        except OSError as error:
            raise AudioError(f"{path}: cannot be read: {error.strerror}") from error
        except AudioError as error:
            raise AudioError(f"{refusal}: {error}") from error
        if several:
            self._file.close()
            raise AudioError(f"{path}: {SEVERAL}")
        self.sample_rate, self.channels = self._file.samplerate, self._file.channels
        self.frames, self.missing_bytes = self._sound.samples, self._sound.missing_bytes
        if self.frames == 0:
            self._file.close()
            raise AudioError(f"{path}: holds no audio (0 samples)")
        seconds = f"{self.frames / self.sample_rate:.1f} s"
        self.note = f"ffmpeg says: {said}" if said else ""
        if self.missing_bytes:
            lacking = f"{self.missing_bytes} bytes are missing at its end"
            self.note = f"is cut short: {lacking}; {seconds} are there"
        elif self._sound.header:
            self.note = f"its header {self._sound.header}: all {seconds} that are there were read"

    def blocks(self, size: int = BLOCK_SAMPLES) -> Iterator[Samples]:
        """Yield the audio as float32 blocks [channel, sample] of at most ``size`` samples.

        Raises:
            AudioError: the file is damaged, or holds values that are not finite numbers.
        """
        position = 0
        while True:
            try:
                block: Samples = self._sound.read(size, "float32", always_2d=True)
            except (soundfile.SoundFileError, OSError) as error:
                seconds = position / self.sample_rate
                raise AudioError(f"{self.path}: is damaged after {seconds:.1f} s") from error
            if len(block) == 0:
                break
            check_finite(block.T, self.path, position, self.sample_rate)
            position += len(block)
            yield np.ascontiguousarray(block.T)
        if position == 0:
            raise AudioError(f"{self.path}: holds no audio (0 samples)")
        if position < self.frames:
            self.note = f"ends {self.frames - position} samples before its header says"

    def whole(self) -> Samples:
        """Return all of it as float32 [channel, sample]."""
        return np.concatenate(list(self.blocks()), axis=1)


class _Sink(io.FileIO):
    """A file for libsndfile, which reports no error when its last piece cannot be written.

    libsndfile calls it back, so signals are held while it works.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write as much as can be written; what went wrong is kept for :meth:`check`."""
        done = 0
        try:
            done = super().write(data)
            if done < memoryview(data).nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._error = self._error or error
        return done

    def check(self, shown: Path) -> None:
        """Raise an AudioError, once, if something could not be written."""
        if self._error is not None:
            error, self._error = self._error, None
            raise AudioError(f"{shown}: cannot be written: {error.strerror}") from error


class AudioWriter(_AudioFile):
    """An audio file that is written block by block; use as a context manager.

    Args:
        path: where; its suffix does not matter.
        shown: what errors call it (default: ``path``).
        sample_rate: in Hz.
        channels: their number.
        encoding: format and bits.
        frames: how many samples per channel are to be expected (decides on RF64).
        clamp: cut values beyond ±1 even where the format can hold them.

    Attributes:
        peak: the largest absolute value that was written.
        clipped: how many values the format had to cut to ±1.
    """

    def __init__(
        self,
        path: Path,
        sample_rate: int,
        channels: int,
        encoding: Encoding,
        *,
        frames: int = 0,
        shown: Path | None = None,
        clamp: bool = False,
    ) -> None:
        encoding.check(sample_rate, channels)
        self.path, self.peak, self.clipped = shown or path, 0.0, 0
        self._clips = clamp or encoding.clips
        self._position, self._rate = 0, sample_rate
        try:
            self._sink = _Sink(path)
        except OSError as error:
            raise AudioError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            with ExitStack() as undo:
                undo.enter_context(self._sink)
                with held():
                    self._file = soundfile.SoundFile(
                        self._sink,
                        "w",
                        samplerate=sample_rate,
                        channels=channels,
                        subtype=encoding.subtype,
                        format=encoding.container(frames, channels),
                        **encoding.compression(sample_rate),
                    )
                    undo.enter_context(self._file)
                undo.pop_all()
        except soundfile.SoundFileError as error:
            self._sink.check(self.path)
            raise AudioError(f"{self.path}: cannot be written: {error}") from error

    def close(self) -> None:
        """Finish the file.

        Raises:
            AudioError: its end cannot be written.
        """
        with self._sink, held():
            super().close()
        self._sink.check(self.path)

    def write(self, block: Samples) -> None:
        """Append ``block`` [channel, sample].

        Raises:
            AudioError: it holds values that are not finite numbers, or cannot be written.
        """
        if block.size == 0:
            return
        check_finite(block, f"{self.path} (not written)", self._position, self._rate)
        self._position += block.shape[1]
        magnitude = np.abs(block)
        self.peak = max(self.peak, float(magnitude.max()))
        if self._clips:
            self.clipped += int(np.count_nonzero(magnitude > 1))
            block = block.clip(-1, 1)  # LAME takes no other values
        try:
            with held():
                self._file.write(np.ascontiguousarray(block.T))
        except (soundfile.SoundFileError, AssertionError) as error:  # the latter: written in part
            self._sink.check(self.path)
            raise AudioError(f"{self.path}: cannot be written: {error}") from error


def check_finite(block: Samples, name: object, position: int, sample_rate: int) -> None:
    """Raise an AudioError that names the first value that is no finite number.

    Args:
        block: [channel, sample].
        name: of the file, for the message.
        position: the block's first sample in the file.
        sample_rate: in Hz.
    """
    finite = np.isfinite(block).all(axis=0)
    if not finite.all():
        first = position + int(np.argmin(finite))
        raise AudioError(
            f"{name}: holds a value that is not a finite number (NaN or infinite) at sample "
            f"{first} ({first / sample_rate:.3f} s)"
        )


def read_audio(path: Path) -> tuple[Samples, int]:
    """Return a whole file as (float32 [channel, sample], sample rate in Hz).

    Raises:
        AudioError: the file is missing, not audio, empty, damaged or not finite.
    """
    with AudioReader(path) as reader:
        return reader.whole(), reader.sample_rate


def resample(blocks: Iterable[Samples], rate_in: int, rate_out: int) -> Iterator[Samples]:
    """Yield ``blocks`` [channel, sample] at another sample rate, in step with the input.

    The result does not depend on how the signal is cut into blocks.
    """
    if rate_in == rate_out:
        yield from blocks
        return
    stream, channels = None, 0
    for block in blocks:
        if stream is None:
            channels = len(block)
            stream = soxr.ResampleStream(rate_in, rate_out, channels, dtype="float32")
        yield np.ascontiguousarray(stream.resample_chunk(np.ascontiguousarray(block.T)).T)
    if stream is not None:
        silence = np.zeros((0, channels), np.float32)
        yield np.ascontiguousarray(stream.resample_chunk(silence, last=True).T)
