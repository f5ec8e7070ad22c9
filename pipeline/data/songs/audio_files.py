"""Headers and samples of wav, flac and .stem.mp4 files, in blocks of bounded size."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
import torch
from torch import Tensor

from lasaft.errors import AudioError, DataError
from lasaft.ffmpeg import INSTALL
from lasaft.sound_file import SEVERAL, Sound, holds_several, open_sound, reason

# The audio streams of a MUSDB18 file, in the file's order.
STEM_MP4_STREAMS = ("mixture", "drums", "bass", "other", "vocals")

_STEM_MP4_SLACK_SECONDS = 0.5  # AAC priming: a container's length differs from the decoded one


@dataclass(frozen=True)
class Header:
    """What a file says about one stream; ``samples`` is the container's count."""

    sample_rate: int
    channels: int
    samples: int


def read_header(path: Path) -> Header:
    """Return what a wav or flac file says, which may not be true: ``read_sound_header`` checks.

    Raises:
        AudioError: the file is no audio.
    """
    with _open_sound(path, f"{path.name} ") as file:
        return Header(file.samplerate, file.channels, file.samples)


def read_sound_header(path: Path) -> Header:
    """Return the header of a wav or flac file.

    Raises:
        AudioError: the file is no audio, or shorter than its header says.
    """
    with _open_sound(path) as file:
        header = Header(file.samplerate, file.channels, file.samples)
        missing, whole = file.missing_bytes, _ends_where_it_says(file)
    if missing:
        raise AudioError(f"is truncated: {missing} bytes fewer than its header says")
    if not whole:
        raise AudioError(f"is truncated: its header says {header.samples} samples")
    return header


def is_pcm(path: Path) -> bool:
    """Return whether a file's samples are whole numbers, which are always finite."""
    try:
        with open_sound(path) as file:
            return file.subtype.startswith("PCM_")
    except AudioError:
        return False


def _ends_where_it_says(file: Sound) -> bool:
    if file.samples == 0:
        return True
    try:
        file.seek(file.samples - 1)
        return len(file.read(1, always_2d=True)) == 1
    except (soundfile.LibsndfileError, OSError):
        return False


def require_ffmpeg() -> None:
    """Raise DataError, saying what to install, unless ffmpeg and ffprobe are on PATH."""
    missing = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    if missing:
        raise DataError(
            f"reading .stem.mp4 needs {' and '.join(missing)} on PATH, which is missing; install "
            f"ffmpeg ({INSTALL}), or use the wav layout of MUSDB18"
        )


def read_stem_mp4_headers(path: Path) -> list[Header]:
    """Return the headers of the audio streams of a .stem.mp4, in the file's order.

    Raises:
        AudioError: the file cannot be read, or is shorter than its boxes say.
        DataError: ffmpeg is missing.
    """
    require_ffmpeg()
    try:
        missing = _missing_mp4_bytes(path)
    except OSError as error:
        raise AudioError(f"cannot be read ({reason(error)})") from error
    if missing:
        raise AudioError(f"is truncated: {missing} bytes fewer than its boxes say")
    entries = "stream=sample_rate,channels,duration"
    command = ["ffprobe", "-v", "error", "-select_streams", "a", "-show_entries", entries]
    done = subprocess.run(
        [*command, "-of", "json", f"file:{path}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.rsplit(": ", maxsplit=1)[-1].strip()
        raise AudioError(f"cannot be read by ffprobe ({said})")
    headers = []
    for stream in json.loads(done.stdout).get("streams", []):
        rate = int(stream.get("sample_rate", 0))
        samples = round(float(stream.get("duration", 0)) * rate)
        headers.append(Header(rate, int(stream.get("channels", 0)), samples))
    return headers


def _missing_mp4_bytes(path: Path) -> int:
    size = path.stat().st_size
    position = 0
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            box = file.read(16)
            length = int.from_bytes(box[:4], "big")
            if length == 1:
                length = int.from_bytes(box[8:16], "big")
            if length == 0:  # the box reaches to the end of the file
                return 0
            if length < 8:
                raise AudioError(f"is no mp4 file (a box of {length} bytes at byte {position})")
            position += length
    return position - size


def sound_blocks(
    paths: Sequence[Path], block_samples: int, start: int = 0, stop: int | None = None
) -> Iterator[Tensor]:
    """Read wav or flac files of one shape side by side.

    Args:
        paths: one file a stream; all of the same length and channels.
        block_samples: samples in a block; the last block may be shorter.
        start: the first sample.
        stop: the sample after the last (None: the end).

    Yields:
        float32 [stream, channel, sample], in [-1, 1) for PCM; 16-bit samples are n / 32768.

    Raises:
        AudioError: a file ends before the others, or cannot be read.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(_open_sound(path, f"{path.name} ")) for path in paths]
        for path in paths:
            if holds_several(path):
                raise AudioError(f"{path.name} {SEVERAL}")
        end = max(file.samples for file in files) if stop is None else stop
        if start:
            for path, file in zip(paths, files, strict=True):
                _seek(path, file, start)
        for at in range(start, end, block_samples):
            block = torch.empty(len(files), files[0].channels, min(block_samples, end - at))
            for stream, path, file in zip(block, paths, files, strict=True):
                _read_block(stream, path, file)
            yield block


def _open_sound(path: Path, shown: str = "") -> Sound:
    try:
        return open_sound(path)
    except AudioError as error:
        raise AudioError(f"{shown}cannot be read as audio ({error})") from error


def _seek(path: Path, file: Sound, sample: int) -> None:
    try:
        file.seek(sample)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path.name} has no sample {sample} ({reason(error)})") from error


def _read_block(stream: Tensor, path: Path, file: Sound) -> None:
    # libsndfile converts int16 to float six times slower than torch does, to the same bits.
    is_int16 = file.subtype == "PCM_16"
    at = file.tell()
    kind = "int16" if is_int16 else "float32"
    try:
        samples = file.read(stream.shape[-1], dtype=kind, always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path.name} is damaged after sample {at} ({reason(error)})") from error
    if samples.shape != stream.shape[::-1]:
        raise AudioError(
            f"{path.name} ends at sample {at + len(samples)} with {samples.shape[1]} channels; "
            f"allowed: {at + stream.shape[-1]} samples or more, of {stream.shape[0]} channels"
        )
    stream.copy_(torch.from_numpy(samples).T)
    if is_int16:
        stream.mul_(1 / 32768)


def stem_mp4_blocks(path: Path, block_samples: int) -> Iterator[Tensor]:
    """Decode the five stereo streams of a .stem.mp4 in one pass of ffmpeg.

    ffmpeg converts to 16 bits, as musdb lets it do, so the samples are musdb's, bit for bit.

    Args:
        path: a file whose headers have been checked.
        block_samples: samples in a block; the last block may be shorter.

    Yields:
        float32 [stream, channel, sample], the streams in the file's order.

    Raises:
        AudioError: ffmpeg fails, or decodes less than the container promises.
    """
    header = read_stem_mp4_headers(path)[0]
    streams = len(STEM_MP4_STREAMS)
    inputs = "".join(f"[0:a:{index}]" for index in range(streams))
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", f"file:{path}"]
    command += ["-filter_complex", f"{inputs}amerge=inputs={streams}", "-f", "s16le", "pipe:1"]
    decoded = 0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        try:
            for block in _pcm_blocks(process.stdout, streams, block_samples):
                decoded += block.shape[-1]
                yield block
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if code or decoded < header.samples - _STEM_MP4_SLACK_SECONDS * header.sample_rate:
        raise AudioError(
            f"decodes to {decoded} samples where its header says {header.samples}"
            + (f" ({said[-1]})" if said else "")
        )


def _pcm_blocks(pipe: IO[bytes], streams: int, block_samples: int) -> Iterator[Tensor]:
    frame_bytes = streams * 2 * 2
    while data := pipe.read(block_samples * frame_bytes):
        whole = len(data) // frame_bytes * frame_bytes
        samples = np.frombuffer(bytearray(data[:whole]), dtype="<i2").reshape(-1, streams, 2)
        yield torch.from_numpy(samples).permute(1, 2, 0) * (1 / 32768)
