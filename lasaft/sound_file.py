"""Opens sound files so that libsndfile reads each sample that is there, whatever headers say."""

from __future__ import annotations

import io
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import soundfile

from lasaft.errors import AudioError
from lasaft.ffmpeg import container
from lasaft.flac import flac_in_ogg, whole_flac
from lasaft.interrupts import held
from lasaft.mpeg import Piece, after_tags, whole_mpeg

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SEVERAL = "holds several streams in one file, give each by itself"
_OPEN = "leaves the length open"  # as a writer to a pipe or one that died does
# How a stream begins, by the first bytes of a file.
_BEGINNINGS = {
    b"fLaC": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    b"OggS": re.compile(rb"OggS\x00\x02"),
}
_LONGEST_BEGINNING = 8
# What libsndfile knows by its first bytes, besides what is looked into here.
_OTHERS = (b"OggS", b"RIFX", b"FORM", b".snd", b"caff", b"riff")


class Sound(soundfile.SoundFile):
    """A sound file, open for reading each sample that is there, whatever its header says.

    Attributes:
        samples: per channel.
        missing_bytes: how many bytes of sound its header promises that are not there.
        header: what it says of the length, if that is not all there is: a verb and its object.
    """

    def __init__(self, path: Path, contents: Contents) -> None:
        self.missing_bytes, self.header = contents.missing_bytes, contents.header
        source: Any = None if contents.pieces is None else Pieces(path, contents.pieces)
        self._source: Pieces | None = source
        with held():  # libsndfile may call the source back
            super().__init__(source or _name(path))
        self.samples = self.frames

    def seekable(self) -> bool:
        """Return False: else soundfile seeks after each read, and fails at an end not known."""
        return False

    def read(self, frames: int, *arguments: Any, **options: Any) -> Any:
        """Read as soundfile does, and nothing of what lies behind the sound."""
        with held():
            frames = min(frames, self.samples - self.tell())
            result = super().read(frames, *arguments, **options)
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
            found = container(stream.read(16))
        if found:
            raise AudioError(f"it is {found[0]}, extract its audio first")
        return Sound(path, _look_into(path))
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(reason(error)) from error


def holds_several(path: Path) -> bool:
    """Return whether another FLAC or Ogg stream follows the first, which alone would be read."""
    with path.open("rb") as file:
        file.seek(after_tags(file, 0))
        mark = _BEGINNINGS.get(file.read(4))
        before = b""
        while mark is not None and (data := file.read(1 << 20)):
            if mark.search(before + data):
                return True
            before = data[-_LONGEST_BEGINNING:]
    return False


def reason(error: Exception) -> str:
    """Return what libsndfile or the system says, without the file's name."""
    said = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return said.strip().rstrip(".") or type(error).__name__


def _name(path: Path) -> Any:
    # As bytes, which its types do not know: a file name need not be Unicode.
    return os.fsencode(path)


@dataclass(frozen=True)
class Contents:
    """What is known of a file beyond what libsndfile tells.

    Args:
        missing_bytes: how many bytes of sound its header promises that are not there.
        header: what it says of the length, if that is not all there is: a verb and its object.
        pieces: what libsndfile must be shown instead of the file (None: the file as it is).
    """

    missing_bytes: int = 0
    header: str = ""
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
    """Return what wav, FLAC and MP3 files hold; nothing of note for other formats.

    Raises:
        AudioError: no sound is found, or an MP3 file changes its sample rate or channels on the
            way; without its name.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    if size == 0:
        raise AudioError("it is empty")
    with path.open("rb") as file:
        start = after_tags(file, 0)
        file.seek(start)
        head = file.read(12)
        if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
            return _wav(file, size, start, head)
        spans: Sequence[Piece] = [(start, size)] if head[:4] == b"fLaC" else []
        if spans or (head[:4] == b"OggS" and (spans := flac_in_ogg(file, start, size))):
            return _flac(path, spans)
        if head[:4] in _OTHERS:
            return Contents(pieces=[(start, size)] if start else None)
        missing, pieces = whole_mpeg(file, size)
        if not pieces:
            raise AudioError("Format not recognised")
        return Contents(missing, pieces=pieces)


def _flac(path: Path, spans: Sequence[Piece]) -> Contents:
    file: Any = Pieces(path, spans)
    with file:
        size = file.seek(0, io.SEEK_END)
        stated, there, pieces = whole_flac(file, size, spans)
        if file.error is not None:
            raise file.error
    missing = max(0, stated - there) * size // there if there else 0
    header = "" if pieces is None else f"says {stated} samples" if stated else _OPEN
    return Contents(missing, header, spans if pieces is None else pieces)


# A program that writes to a pipe cannot know the length. Some write 0, others the most that the
# field holds, as signed or unsigned, or that less or more the size of the header, or of a page.
_UNKNOWN = (0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_AROUND = 4096
_MOST_CHUNKS = 10_000
_CHUNK = re.compile(rb"[ -~]{4}")
_TAGS = (b"TAG", b"APETAGEX", b"ID3")


def _is_unknown(length: int, size: int) -> bool:
    return length > size and any(abs(length - mark) <= _AROUND for mark in _UNKNOWN)


def _wav(file: IO[bytes], size: int, begin: int, head: bytes) -> Contents:
    riff, kind = int.from_bytes(head[4:8], "little"), b""
    whole: Sequence[Piece] | None = [(begin, size)] if begin else None
    long: int | None = None  # the length that RF64 says
    for _ in range(_MOST_CHUNKS):
        chunk = file.read(8)
        if len(chunk) < 8:
            break
        start, length = file.tell(), int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"ds64":
            long = int.from_bytes(file.read(16)[8:], "little")
        elif chunk[:4] == b"fmt ":
            kind = file.read(min(length, _AROUND))
        elif chunk[:4] == b"data":
            if long is not None and length == 0xFFFFFFFF:
                length = long
            # With a right size of the whole, no sound is meant.
            is_open = length == 0 and begin + riff + 8 != size and size > start
            says_less = not is_open and not _ends(file, start + length, size)
            lacking = max(0, start + length - size)
            riff_is_unknown = long is None and (riff == 0 or _is_unknown(riff, size))
            is_unknown = lacking > 0 and (riff_is_unknown or _is_unknown(length, size))
            header = _OPEN if is_open or is_unknown else ""
            header = f"says {length} bytes of sound" if says_less else header
            missing, pieces = 0 if is_unknown else lacking, whole
            # libsndfile believes 64 bits, and knows no BW64.
            if is_open or says_less or (is_unknown and long is not None) or head[:4] == b"BW64":
                stop = size if header else min(start + length, size)
                pieces = [_right_header(kind, stop - start), (start, stop)]
            return Contents(missing, header, pieces)
        file.seek(start + length + length % 2)
    return Contents(pieces=whole)


def _right_header(kind: bytes, length: int) -> bytes:
    """Return the beginning of a wav file of so many bytes of sound; RF64 where they are many.

    Args:
        kind: what its ``fmt `` chunk holds.
    """
    chunk = b"fmt " + len(kind).to_bytes(4, "little") + kind + bytes(len(kind) % 2)
    whole = 4 + len(chunk) + 8 + length
    if whole < 0xFFFFFFFF:
        sizes = [number.to_bytes(4, "little") for number in (whole, length)]
        return b"RIFF" + sizes[0] + b"WAVE" + chunk + b"data" + sizes[1]
    lengths = b"".join(number.to_bytes(8, "little") for number in (whole + 36, length, 0))
    unknown = b"\xff" * 4
    long = b"ds64" + (28).to_bytes(4, "little") + lengths + bytes(4)
    return b"RF64" + unknown + b"WAVE" + long + chunk + b"data" + unknown


def _ends(file: IO[bytes], at: int, size: int) -> bool:
    """Return whether no sound goes on at ``at``: a chunk is there, a tag, filler or nothing."""
    if at >= size:
        return True
    for place in (at, at + 1):  # with an odd length
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if len(head) < 8 or head.startswith(_TAGS):
            return True
        if _CHUNK.match(head) and place + 8 + length <= size + 1:
            return True
    file.seek(at)
    while block := file.read(1 << 20):
        if block.count(0) < len(block):
            return False
    return True
