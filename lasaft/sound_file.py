"""Opens sound files so that libsndfile reads each sample that is there, whatever headers say."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import soundfile

from lasaft.errors import AudioError
from lasaft.interrupts import held
from lasaft.mpeg import Piece, whole_mpeg

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK_SAMPLES = 1 << 16
_NO_LENGTH = 2**63 - 1  # libsndfile's, where a header leaves it open


class Sound(soundfile.SoundFile):
    """A sound file, open for reading each sample that is there, whatever its header says.

    Attributes:
        samples: per channel.
        missing_bytes: how many bytes of sound its header promises that are not there.
        open_ended: its header leaves the length open.
    """

    def __init__(self, path: Path, contents: Contents) -> None:
        self.missing_bytes, self.open_ended = contents.missing_bytes, contents.open_ended
        source: Any = None if contents.pieces is None else Pieces(path, contents.pieces)
        self._source: Pieces | None = source
        with held():  # libsndfile may call the source back
            super().__init__(source or _name(path))
        self.samples = self.frames
        if self.frames == _NO_LENGTH:
            self.open_ended, self.samples = True, 0
            while count := len(self.read(_BLOCK_SAMPLES, "float32")):
                self.samples += count
            self.seek(0)

    def seekable(self) -> bool:
        """Return False: else soundfile seeks after each read, and fails at an end not known."""
        return False

    def read(self, *arguments: Any, **options: Any) -> Any:
        """Read as soundfile does."""
        with held():
            result = super().read(*arguments, **options)
        if self._source is not None and self._source.error is not None:
            raise self._source.error
        return result

    def seek(self, *arguments: Any, **options: Any) -> int:
        """Seek as soundfile does."""
        with held():
            return super().seek(*arguments, **options)

    def close(self) -> None:
        """Close the file."""
        super().close()
        if self._source is not None:
            self._source.close()


def open_sound(path: Path) -> Sound:
    """Open an audio file for reading.

    Raises:
        AudioError: it cannot be read; the reason alone, without the file's name.
    """
    try:
        with path.open("rb") as stream:
            video = _video_format(stream.read(16))
        if video:
            raise AudioError(f"it is {video}, extract its audio first")
        return Sound(path, _look_into(path))
    except (soundfile.SoundFileError, OSError) as error:
        text = reason(error)
        # What libsndfile says of files without MPEG frames.
        missing = text.startswith("File does not exist")
        raise AudioError("no audio in it is recognised" if missing else text) from error


def holds_several(path: Path) -> bool:
    """Return whether another FLAC or Ogg stream follows the first, which alone would be read."""
    with path.open("rb") as file:
        mark = {b"fLaC": b"fLaC\x00\x00\x00\x22", b"OggS": b"OggS\x00\x02"}.get(file.read(4))
        before = b""
        while mark is not None and (data := file.read(1 << 20)):
            if mark in before + data:
                return True
            before = data[-len(mark) :]
    return False


def reason(error: Exception) -> str:
    """Return what libsndfile or the system says, without the file's name."""
    said = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return said.strip().rstrip(".") or type(error).__name__


def _name(path: Path) -> Any:
    # As bytes, which its types do not know: a file name need not be Unicode.
    return os.fsencode(path)


def _video_format(head: bytes) -> str:
    """Name the container whose first bytes these are: libsndfile may find "MPEG audio" in it."""
    if head[4:8] == b"ftyp":
        return "MP4"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI"
    starts = {
        b"\x1aE\xdf\xa3": "Matroska or WebM",
        b"\x00\x00\x01\xba": "MPEG video",
        b"FLV": "FLV",
    }
    return next((name for start, name in starts.items() if head.startswith(start)), "")


@dataclass(frozen=True)
class Contents:
    """What is known of a file beyond what libsndfile tells.

    Args:
        missing_bytes: how many bytes of sound its header promises that are not there.
        open_ended: its header leaves the length open, as a writer to a pipe or one that died does.
        pieces: what libsndfile must be shown instead of the file (None: the file as it is).
    """

    missing_bytes: int = 0
    open_ended: bool = False
    pieces: Sequence[Piece] | None = None


class Pieces(io.RawIOBase):
    """Pieces of a file and other bytes, as one file; read errors are kept in ``error``.

    libsndfile calls it back, where exceptions would be lost.
    """

    def __init__(self, path: Path, pieces: Sequence[Piece]) -> None:
        self._file, self._pieces = path.open("rb"), pieces
        sizes = (len(one) if isinstance(one, bytes) else one[1] - one[0] for one in pieces)
        self._starts = [0, *accumulate(sizes)]
        self._at = 0
        self.error: OSError | None = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position and return it."""
        self._at = max(0, offset + (0, self._at, self._starts[-1])[whence])
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer`` as far as there is something left."""
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view) and self._at < self._starts[-1]:
            number = bisect_right(self._starts, self._at) - 1
            within = self._at - self._starts[number]
            wanted = min(len(view) - done, self._starts[number + 1] - self._at)
            data = self._part(self._pieces[number], within, wanted)
            if not data:
                break
            view[done : done + len(data)] = data
            done, self._at = done + len(data), self._at + len(data)
        return done

    def _part(self, piece: Piece, within: int, wanted: int) -> bytes:
        if isinstance(piece, bytes):
            return piece[within : within + wanted]
        try:
            self._file.seek(piece[0] + within)
            return self._file.read(wanted)
        except OSError as error:
            self.error = error
            return b""


def _look_into(path: Path) -> Contents:
    """Return what wav and MP3 files hold; nothing of note for other formats.

    Raises:
        AudioError: an MP3 file changes its sample rate or channels on the way; without its name.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
            return _wav(file, size, head)
        if head[:4] in (b"fLaC", b"OggS", b"FORM", b".snd", b"caff", b"riff"):
            return Contents()
        missing, pieces = whole_mpeg(file, size)
        return Contents(missing, pieces=pieces or None)


# A program that writes to a pipe cannot know the length. Some write 0, others the most that the
# field holds, as signed or unsigned, or that less or more the size of the header, or of a page.
_UNKNOWN = (0x7FFFFFFF, 0xFFFFFFFF)
_AROUND = 4096
_MOST_CHUNKS = 10_000


def _is_unknown(length: int, size: int) -> bool:
    return length > size and any(abs(length - mark) <= _AROUND for mark in _UNKNOWN)


def _wav(file: IO[bytes], size: int, head: bytes) -> Contents:
    riff = int.from_bytes(head[4:8], "little")
    long: tuple[int, int] | None = None  # of RF64: where the length is, and what
    for _ in range(_MOST_CHUNKS):
        chunk = file.read(8)
        if len(chunk) < 8:
            break
        start, length = file.tell(), int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"ds64":
            long = start + 8, int.from_bytes(file.read(16)[8:], "little")
        elif chunk[:4] == b"data":
            field, width = start - 4, 4
            if long is not None and length == 0xFFFFFFFF:
                (field, length), width = long, 8
            # With a right size of the whole, no sound is meant.
            if length == 0 and riff + 8 != size and size > start:
                there = (size - start).to_bytes(width, "little")
                return Contents(0, True, [(0, field), there, (field + width, size)])
            lacking = max(0, start + length - size)
            riff_is_unknown = long is None and (riff == 0 or _is_unknown(riff, size))
            is_open = lacking > 0 and (riff_is_unknown or _is_unknown(length, size))
            return Contents(0 if is_open else lacking, is_open)
        file.seek(start + length + length % 2)
    return Contents()
