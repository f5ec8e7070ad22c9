"""Short sounds and their spectrograms, beside the page or in it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
import soxr
from PIL import Image

from lasaft.errors import DataError
from lasaft.files import atomic_write_bytes, file_sha256, read_steadily
from pipeline.evaluation.excerpts import EXCERPT_FILE, MIXTURE_FILE, REFERENCE_FOLDER

_VERSION = 1  # raised by whoever changes how sounds or pictures are made
_WIDTH, _HEIGHT = 460, 96  # pixels of a spectrogram
_LOWEST_HZ, _HIGHEST_HZ = 40.0, 16_000.0
RANGE_DB = 72.0
_LEVELS = 64
_N_FFT = 2048
_MP3_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # all that MP3 has
_QUALITY = 55  # of the pictures, in per cent: a third of the size of PNG, and no eye sees it


@dataclass(frozen=True)
class Clip:
    """One sound on the page: what it is, and where an MP3 and a spectrogram of it are."""

    label: str
    audio: str
    picture: str


@dataclass(frozen=True)
class Song:
    """The clips of one song: ``rows[source]`` holds the reference, then each system's estimate."""

    track: str
    start_seconds: float
    seconds: float
    mixture: Clip
    rows: dict[str, list[Clip]]


class Shelf:
    """Where sounds and pictures go: files in a folder beside the page, or into the page itself.

    What is there already is not made again: its name is that of its content.

    Args:
        folder: beside the page; None: everything becomes a data URI.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: set[str] = set()

    def put(self, name: str, kind: str, make: Callable[[], bytes]) -> str:
        """Return the address of ``name`` on the page; ``make`` gives its bytes."""
        if self._folder is None:
            return f"data:{kind};base64,{base64.b64encode(make()).decode()}"
        self._kept.add(name)
        if not (self._folder / name).is_file():
            atomic_write_bytes(self._folder / name, make())
        return f"{self._folder.name}/{name}"

    def clear(self, folder: Path) -> None:
        """Remove from ``folder`` what no page shows any more."""
        for file in folder.glob("*"):
            if file.name not in self._kept:
                file.unlink()
        if folder.is_dir() and not self._kept:
            folder.rmdir()


def read_songs(folder: Path, systems: dict[str, str], most: int, shelf: Shelf) -> list[Song]:
    """Read the excerpts that ``evaluate`` left below ``folder``, at most ``most`` songs.

    Args:
        folder: of one split; a folder for each song.
        systems: the name on the page for each folder name of a system, in the order to show.
        most: how many songs to show.
        shelf: where their sounds and pictures go.

    Raises:
        DataError: an excerpt cannot be read.
    """
    found = sorted(folder.glob(f"*/{EXCERPT_FILE}")) if folder.is_dir() else []
    return [_read_song(file, systems, shelf) for file in found[:most]]


def _read_song(file: Path, systems: dict[str, str], shelf: Shelf) -> Song:
    folder = file.parent
    try:
        facts = json.loads(read_steadily(file))
        sources, track = list(facts["sources"]), str(facts["track"])
        start, seconds = float(facts["start_seconds"]), float(facts["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: not the facts of an excerpt ({error}); evaluate again") from error
    mixture = _read(folder / MIXTURE_FILE)
    loudest, whole = float(_spectrum(*mixture).max()), file_sha256(folder / MIXTURE_FILE)

    def clip(path: Path, label: str) -> Clip:
        name = hashlib.sha256(f"{_VERSION} {whole} {file_sha256(path)}".encode()).hexdigest()[:20]
        audio = shelf.put(f"{name}.mp3", "audio/mpeg", lambda: _mp3(*_read(path)))
        picture = shelf.put(
            f"{name}.webp", "image/webp", lambda: _picture(_spectrum(*_read(path)), loudest)
        )
        return Clip(label, audio, picture)

    columns = {REFERENCE_FOLDER: "reference", **systems}
    rows = {
        source: [
            clip(path, label)
            for name, label in columns.items()
            if (path := folder / name / f"{source}.wav").is_file()
        ]
        for source in sources
    }
    return Song(track, start, seconds, clip(folder / MIXTURE_FILE, "mixture"), rows)


def _read(path: Path) -> tuple[np.ndarray, int]:
    """Return an excerpt [sample, channel] and its sample rate in Hz."""
    try:
        return soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise DataError(f"{path}: cannot read this excerpt ({error}); evaluate again") from error


def _mp3(wave: np.ndarray, rate: int) -> bytes:
    """Return ``wave`` [sample, channel] as MP3, at the nearest rate that MP3 has above."""
    known = next((hz for hz in _MP3_HZ if hz >= rate), _MP3_HZ[-1])
    if known != rate:
        wave, rate = soxr.resample(wave, rate, known), known
    buffer = io.BytesIO()
    clipped = np.clip(wave, -1, 1)  # MP3 decoders clip anyway; estimates can pass full scale
    soundfile.write(buffer, clipped, rate, format="MP3", compression_level=0.75)
    return buffer.getvalue()


def _spectrum(wave: np.ndarray, rate: int) -> np.ndarray:
    """Return the level [bin, frame] in dB of ``wave`` [sample, channel].

    The frequency axis is logarithmic, with low bins last.
    """
    mono = np.pad(wave.mean(axis=1), (_N_FFT // 2, _N_FFT))
    starts = np.linspace(0, max(len(wave) - 1, 0), _WIDTH).astype(int)
    frames = np.stack([mono[start : start + _N_FFT] for start in starts])
    power = np.abs(np.fft.rfft(frames * np.hanning(_N_FFT))) ** 2
    highest = min(_HIGHEST_HZ, rate / 2)
    edges = np.geomspace(_LOWEST_HZ, highest, _HEIGHT + 1) * _N_FFT / rate
    bands = np.empty((_HEIGHT, _WIDTH))
    for band in range(_HEIGHT):
        low = int(edges[band])
        bands[band] = power[:, low : max(int(np.ceil(edges[band + 1])), low + 1)].mean(axis=1)
    return 10 * np.log10(bands[::-1] + 1e-12)


def _picture(level: np.ndarray, loudest: float) -> bytes:
    """Return ``level`` [bin, frame] in dB as a picture in WebP, ``loudest`` brightest."""
    scaled = np.clip(1 + (level - loudest) / RANGE_DB, 0, 1)
    image = Image.fromarray(np.round(scaled * (_LEVELS - 1)).astype(np.uint8), mode="P")
    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, _LEVELS))[:, :3]
    image.putpalette((colours * 255).round().astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=_QUALITY, method=6)
    return buffer.getvalue()
