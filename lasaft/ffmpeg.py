"""Decodes what libsndfile does not read (MP4, AAC, WebM and others) where ffmpeg is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lasaft.errors import AudioError

INSTALL = "apt-get install ffmpeg, brew install ffmpeg or conda install ffmpeg"
# What a file begins with: its format, and ffmpeg's name of what reads that and nothing else.
_STARTS = {
    b"\x1aE\xdf\xa3": ("Matroska or WebM", "matroska"),
    b"\x00\x00\x01\xba": ("MPEG video", "mpeg"),
    b"FLV": ("FLV", "flv"),
}


def container(head: bytes) -> tuple[str, str] | None:
    """Return the format with these first bytes, and ffmpeg's name; None: libsndfile's to read.

    libsndfile may find "MPEG audio" in it.
    """
    if head[4:8] == b"ftyp":
        return "MP4", "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI", "avi"
    if head[:1] == b"\xff" and head[1:2] in (b"\xf0", b"\xf1", b"\xf8", b"\xf9"):
        return "AAC", "aac"
    return next((found for start, found in _STARTS.items() if head.startswith(start)), None)


@contextmanager
def decoded(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield a file that libsndfile reads, and what ffmpeg complained of in making it.

    That is ``path`` itself, or a temporary wav file of its first sound track.

    Raises:
        AudioError: ffmpeg is not there or cannot decode it; the reason alone.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        found = container(file.read(16))
    if found is None:
        yield path, ""
        return
    name, demuxer = found
    if shutil.which("ffmpeg") is None:
        raise AudioError(f"it is {name}, which needs ffmpeg on PATH ({INSTALL})")
    with TemporaryDirectory(prefix="lasaft-") as folder:
        wav = Path(folder, "decoded.wav")
        command = [
            "ffmpeg", "-nostdin", "-v", "error", "-protocol_whitelist", "file", "-f", demuxer,
            "-i", f"file:{path}", "-map", "0:a:0", "-c:a", "pcm_f32le", "-rf64", "auto", str(wav),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, check=False)
        said = done.stderr.decode(errors="replace").strip().splitlines()
        last = said[-1].rsplit("] ", maxsplit=1)[-1] if said else ""
        if done.returncode and any("matches no streams" in line for line in said):
            raise AudioError(f"it is {name} without a sound track")
        if done.returncode:
            raise AudioError(f"it is {name}, and ffmpeg says: {last or 'nothing'}")
        yield wav, last
