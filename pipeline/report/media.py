"""Short sounds and their spectrograms as data URIs, so that the page asks no server for them."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
import soxr
from PIL import Image

from lasaft.errors import DataError
from pipeline.evaluation.excerpts import EXCERPT_FILE, MIXTURE_FILE, REFERENCE_FOLDER

_WIDTH, _HEIGHT = 460, 96  # pixels of a spectrogram
_LOWEST_HZ, _HIGHEST_HZ = 40.0, 16_000.0
RANGE_DB = 72.0
_LEVELS = 64
_N_FFT = 2048
_MP3_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # all that MP3 has
_QUALITY = 55  # of the pictures, in per cent: a third of the size of PNG, and no eye sees it


@dataclass(frozen=True)
class Clip:
    """One sound on the page: what it is, an MP3 and a spectrogram as data URIs."""

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
    columns: list[str]
    rows: dict[str, list[Clip | None]]


def read_songs(folder: Path, systems: dict[str, str], most: int) -> list[Song]:
    """Read the excerpts that ``evaluate`` left below ``folder``, at most ``most`` songs.

    Args:
        folder: of one split; a folder for each song.
        systems: the name on the page for each folder name of a system, in the order to show.
        most: how many songs to show.

    Raises:
        DataError: an excerpt cannot be read.
    """
    found = sorted(folder.glob(f"*/{EXCERPT_FILE}")) if folder.is_dir() else []
    return [_read_song(file, systems) for file in found[:most]]


def _read_song(file: Path, systems: dict[str, str]) -> Song:
    folder = file.parent
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        sources, track = list(facts["sources"]), str(facts["track"])
        start, seconds = float(facts["start_seconds"]), float(facts["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: not the facts of an excerpt ({error}); evaluate again") from error
    mixture, rate = _read(folder / MIXTURE_FILE)
    loudest = float(_spectrum(mixture, rate).max())
    present = {name: label for name, label in systems.items() if (folder / name).is_dir()}

    def clip(path: Path, label: str) -> Clip | None:
        if not path.is_file():
            return None
        wave, rate = _read(path)
        return Clip(label, _mp3(wave, rate), _picture(_spectrum(wave, rate), loudest))

    columns = {REFERENCE_FOLDER: "reference", **present}
    rows = {
        source: [
            clip(folder / name / f"{source}.wav", f"{source}, {label}, {track}")
            for name, label in columns.items()
        ]
        for source in sources
    }
    whole = clip(folder / MIXTURE_FILE, f"mixture, {track}")
    assert whole is not None
    return Song(track, start, seconds, whole, list(columns.values()), rows)


def _read(path: Path) -> tuple[np.ndarray, int]:
    """Return an excerpt [sample, channel] and its sample rate in Hz."""
    try:
        return soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise DataError(f"{path}: cannot read this excerpt ({error}); evaluate again") from error


def _mp3(wave: np.ndarray, rate: int) -> str:
    """Return ``wave`` [sample, channel] as a data URI, at the nearest rate that MP3 has above."""
    known = next((hz for hz in _MP3_HZ if hz >= rate), _MP3_HZ[-1])
    if known != rate:
        wave, rate = soxr.resample(wave, rate, known), known
    buffer = io.BytesIO()
    clipped = np.clip(wave, -1, 1)  # MP3 decoders clip anyway; estimates can pass full scale
    soundfile.write(buffer, clipped, rate, format="MP3", compression_level=0.75)
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


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


def _picture(level: np.ndarray, loudest: float) -> str:
    """Return ``level`` [bin, frame] in dB as a data URI of a picture, ``loudest`` brightest."""
    scaled = np.clip(1 + (level - loudest) / RANGE_DB, 0, 1)
    image = Image.fromarray(np.round(scaled * (_LEVELS - 1)).astype(np.uint8), mode="P")
    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, _LEVELS))[:, :3]
    image.putpalette((colours * 255).round().astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=_QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
