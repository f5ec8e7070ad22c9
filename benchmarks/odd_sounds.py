"""Odd sound files of many kinds, read as all commands read them, and by ffmpeg beside.

    python -m benchmarks.odd_sounds --each 20

A file passes if all of it is read (as many samples as ffmpeg finds, but for a frame at a cut), if
what is missing is told, or if it is refused in one line. Ends with 1 if any passed for whole that
was not, or gave another error. Needs ffmpeg.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.measure import Table
from lasaft.audio import AudioReader
from lasaft.errors import AudioError

_RATE, _MP3_FRAME = 44100, 1152
_TOLD, _WHOLE, _REFUSED, _WRONG = "read as far as it goes, told", "whole", "refused", "WRONG"
Odd = Callable[[random.Random, bytes], bytes]


def _number(at: int, value: int, width: int = 4) -> Odd:
    """Return what overwrites a number in a header."""
    return lambda _, data: data[:at] + value.to_bytes(width, "little") + data[at + width :]


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) // 10, len(data))]


def _untagged(_: random.Random, data: bytes) -> bytes:
    """Return an MP3 without its first frame, which says how long it is."""
    return data[data.index(b"\xff\xfb", 4) :]


def _joined(_: random.Random, data: bytes) -> bytes:
    return data + data


def _with_id3(draw: random.Random, data: bytes) -> bytes:
    size = draw.randrange(10, 5000)
    return b"ID3\x04\0\0" + bytes([0, 0, size >> 7, size & 127]) + bytes(size) + data


def _far_behind_id3(draw: random.Random, data: bytes) -> bytes:
    return _with_id3(draw, bytes(10**5) + data)


def _with_ape(draw: random.Random, data: bytes) -> bytes:
    size = draw.randrange(32, 400)
    footer = b"APETAGEX" + b"".join(n.to_bytes(4, "little") for n in (2000, size, 1, 0)) + bytes(8)
    return data + bytes(size - 32) + footer


def _counting(samples: int) -> Odd:
    """Return what lets a FLAC's header say how many samples it has (0: leaves it open)."""
    count = samples.to_bytes(4, "big")
    return lambda _, data: data[:21] + bytes([data[21] & 0xF0]) + count + data[26:]


def _after(first: Odd, second: Odd) -> Odd:
    return lambda draw, data: second(draw, first(draw, data))


def _flipped(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _promising(draw: random.Random, data: bytes) -> bytes:
    return _number(40, draw.randrange(2**20, 2**30))(draw, data)


KINDS: dict[str, tuple[str, Odd]] = {
    "mp3 as it is": ("mp3", lambda _, data: data),
    "mp3 without a tag": ("mp3", _untagged),
    "mp3, two joined": ("mp3", _joined),
    "mp3, two joined, no tag": ("mp3", lambda draw, data: _joined(draw, _untagged(draw, data))),
    "mp3 with ID3 in front": ("mp3", _with_id3),
    "mp3 with an APE tag": ("mp3", _with_ape),
    "mp3 cut off": ("mp3", _cut),
    "mp3 without a tag, far behind ID3": ("mp3", _after(_untagged, _far_behind_id3)),
    "flac of open length": ("flac", _counting(0)),
    "flac of open length behind ID3": ("flac", _after(_counting(0), _with_id3)),
    "flac with an APE tag": ("flac", _with_ape),
    "flac that says less than it has": ("flac", _counting(10_000)),
    "flac cut off": ("flac", _cut),
    "ogg cut off": ("ogg", _cut),
    "wav, sizes 0": ("wav", lambda draw, data: _number(40, 0)(draw, _number(4, 0)(draw, data))),
    "wav, sizes of a pipe": ("wav", _number(40, 0x7FFFF000)),
    "wav, sizes 2^32 - 1": ("wav", _number(40, 0xFFFFFFFF)),
    "wav that says less than it has": ("wav", _number(40, 40_000)),
    "wav that promises more": ("wav", _promising),
    "wav cut off": ("wav", _cut),
    "any, a bit flipped": ("", _flipped),
}  # fmt: skip


def _sound(draw: random.Random, suffix: str, folder: Path) -> bytes:
    path, noise = folder / f"whole.{suffix}", np.random.default_rng(draw.randrange(2**32))
    frames = draw.randrange(_RATE // 2, 4 * _RATE)
    kind = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}[suffix]
    soundfile.write(path, noise.uniform(-0.3, 0.3, (frames, 2)), _RATE, subtype=kind)
    return path.read_bytes()


def _by_ffmpeg(path: Path) -> int:
    """Return how many samples ffmpeg finds."""
    words = ["ffmpeg", "-v", "quiet", "-i", str(path), "-f", "s16le", "-ac", "2", "-"]
    return len(subprocess.run(words, capture_output=True, check=False).stdout) // 4


def _outcome(path: Path) -> tuple[str, str]:
    """Return what became of a file, and what is wrong with that."""
    try:
        with AudioReader(path) as reader:
            count = sum(block.shape[1] for block in reader.blocks())
            told = bool(reader.missing_bytes)
    except AudioError:
        return _REFUSED, ""
    except Exception as error:  # noqa: BLE001  that is what is looked for
        return _WRONG, f"{type(error).__name__}: {error}"
    theirs = _by_ffmpeg(path)
    if told:
        return _TOLD, ""
    if count >= theirs - _MP3_FRAME:
        return _WHOLE, ""
    return _WRONG, f"{count} samples; ffmpeg finds {theirs}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--each", type=int, default=20, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, wrong = random.Random(options.seed), []
    outcomes = (_WHOLE, _TOLD, _REFUSED, _WRONG)
    rows = Table("kind of file", *outcomes)
    with tempfile.TemporaryDirectory() as root:
        for kind, (suffix, odd) in KINDS.items():
            found = Counter[str]()
            for _ in range(options.each):
                ending = suffix or draw.choice(["mp3", "flac", "ogg", "wav"])
                path = Path(root) / f"odd.{ending}"
                path.write_bytes(odd(draw, _sound(draw, ending, Path(root))))
                outcome, why = _outcome(path)
                found[outcome] += 1
                if why:
                    wrong.append(f"{kind}: {why}")
            rows.row(kind, *(found[outcome] for outcome in outcomes))
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
