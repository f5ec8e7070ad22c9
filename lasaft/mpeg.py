"""The frames of an MP3, each that is there, whatever its tags say."""

from __future__ import annotations

import re
from typing import IO, NamedTuple

from lasaft.errors import AudioError

Piece = bytes | tuple[int, int]  # bytes, or from where to where in a file

# MPEG audio, layer III: ISO 11172-3 and 13818-3. Rates in Hz by version (2.5, none, 2, 1), kbit/s
# by index: those of version 1, and those of the others.
_RATES = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}
_KBITS = (
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xeb]", re.DOTALL)
_BLOCK_BYTES = 1 << 16
_IN_A_ROW = 3  # frames after each other are no coincidence
_MOST_TRIES = 100_000  # more than in gigabytes of other things
_LAME_BYTES = 36  # the part of a tag with the samples to leave out at both ends
_PADDING_AT = 22  # in it: four bits there and the byte after it; the delay before them
_DECODER_DELAY = 529  # samples


class _Frame(NamedTuple):
    """What the four bytes at the beginning of an MPEG frame say."""

    rate: int
    channels: int
    bytes: int
    samples: int
    side_bytes: int  # between the header and what a tag says

    def __str__(self) -> str:
        return f"{self.rate} Hz, {self.channels} channels"

    @property
    def kind(self) -> tuple[int, int]:
        return self.rate, self.channels

    @classmethod
    def of(cls, head: bytes) -> _Frame | None:
        if not _SYNC.match(head) or len(head) < 4 or (head[2] >> 2) & 3 == 3:
            return None
        version, mono = (head[1] >> 3) & 3, head[3] >> 6 == 3
        rate, first = _RATES[version][(head[2] >> 2) & 3], version == 3
        kbits = _KBITS[first][head[2] >> 4]
        size = (144 if first else 72) * 1000 * kbits // rate + ((head[2] >> 1) & 1)
        side = (17 if mono else 32) if first else (9 if mono else 17)
        return cls(rate, 1 if mono else 2, size, 1152 if first else 576, side)


class _Scan:
    """All whole frames of an MPEG file, between whatever else is in it.

    Attributes:
        spans: where frames follow each other, tags left out.
        count: the frames in them.
        first: what kind of frames.
        tags: in the first frames of each of the joined files.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self.spans: list[tuple[int, int]] = []
        self.count = self._tries = 0
        self.first: _Frame | None = None
        self.tags: list[_Tag] = []
        at = self._next(0)
        while at is not None:
            at = self._next(self._run(at))

    def read(self, at: int, count: int) -> bytes:
        """Return ``count`` bytes from ``at`` on."""
        self._file.seek(at)
        return self._file.read(count)

    def _frame(self, at: int) -> _Frame | None:
        frame = _Frame.of(self.read(at, 4))
        return frame if frame and at + frame.bytes <= self._size else None

    def _run(self, at: int) -> int:
        """Take the frames from ``at`` on, and return where the last ends."""
        begin = start = at
        while (frame := self._frame(at)) and (not self.first or frame.kind == self.first.kind):
            self.first = self.first or frame
            if tag := _tag(self.read(at, frame.bytes), frame):
                self.tags.append(tag)
                self.spans.append((start, at))
                start = at + frame.bytes
            else:
                self.count += 1
            at += frame.bytes
        if at == begin:
            frame = self._frame(at)
            assert frame is not None
            assert self.first is not None
            raise AudioError(
                f"goes from {self.first} to {frame} after {self.count} MPEG frames; allowed: one "
                "sample rate and number of channels"
            )
        self.spans.append((start, at))
        return at

    def _next(self, at: int) -> int | None:
        """Return where frames begin from ``at`` on, ID3 tags left out."""
        at = after_tags(self._file, at)
        while at < self._size:
            data = self.read(at, _BLOCK_BYTES + 2)
            for found in _SYNC.finditer(data):
                if self._begins(at + found.start()):
                    return at + found.start()
                self._tries += 1
                if self._tries > _MOST_TRIES:
                    raise AudioError("holds hardly anything but beginnings of MPEG frames")
            at += max(1, len(data) - 2)
        return None

    def _begins(self, at: int) -> bool:
        """Whether some frames of one kind follow each other, or one ends where the file does."""
        kind = None
        for _ in range(_IN_A_ROW):
            frame = _Frame.of(self.read(at, 4))
            if not frame or at + frame.bytes > self._size or kind not in (None, frame.kind):
                return False
            kind, at = frame.kind, at + frame.bytes
            if at == self._size:
                break
        return True


def after_tags(file: IO[bytes], at: int) -> int:
    """Return where the ID3 tags that begin at ``at`` end; one that would end behind all is none."""
    size = file.seek(0, 2)
    file.seek(at)
    while (tag := file.read(10))[:3] == b"ID3" and len(tag) == 10:
        first, second, third, last = tag[6:]
        end = at + 10 + (first << 21 | second << 14 | third << 7 | last)
        end += 10 if tag[5] & 16 else 0
        if end > size:
            break
        at = end
        file.seek(at)
    return at


def whole_mpeg(file: IO[bytes], size: int) -> tuple[int, list[Piece]]:
    """Return what to show a decoder so that it reads each whole frame, and how many bytes lack.

    Args:
        file: that may be an MP3.
        size: of it, in bytes.

    Returns:
        How many bytes of frames the tag promises that are not there, and the pieces: a tag that
        is right, then the frames; none of a file in which no frames are found.

    Raises:
        AudioError: the frames are not all of one sample rate and number of channels.
    """
    scan = _Scan(file, size)
    spans = [(begin, stop) for begin, stop in scan.spans if begin < stop]
    if scan.first is None or not scan.count:
        return 0, []
    head = scan.read(spans[0][0], 4)
    if not scan.tags:
        return 0, [*_right_tag(head, scan.count, None), *spans]
    promised, missing = sum(tag.frames for tag in scan.tags), 0
    lame = scan.tags[0].lame if spans[0] != scan.spans[0] else None
    if promised > scan.count + len(scan.tags):  # some count the tag's own frame
        there = sum(stop - begin for begin, stop in spans)
        lacking = (promised - scan.count) * there // scan.count
        known = sum(tag.bytes for tag in scan.tags) - (spans[-1][1] - scan.spans[0][0])
        missing = max(known, 0) or max(lacking, 1)
    if scan.tags[0].frames not in (0, scan.count) and lame:  # the end that it speaks of is another
        lame = lame[:_PADDING_AT] + bytes([lame[_PADDING_AT] & 0xF0, 0]) + lame[_PADDING_AT + 2 :]
    return missing, [*_right_tag(head, scan.count, lame), *spans]


class _Tag(NamedTuple):
    """What the tag in a first frame says: of frames and bytes how many (0: it does not say)."""

    frames: int
    bytes: int
    lame: bytes | None  # LAME's part, which has the samples to leave out at both ends


def _right_tag(head: bytes, count: int, lame: bytes | None) -> list[Piece]:
    """Return a first frame whose tag says how many there are.

    Args:
        head: the header of a frame.
        count: the frames after the tag.
        lame: LAME's part (None: the file has no tag; then no sample may be left out for it).
    """
    # No checksum, a bit rate that has room for the tag in all versions, no padding.
    bits = bytes([head[0], head[1] | 1, 9 << 4 | head[2] & 0xC, head[3]])
    frame = _Frame.of(bits)
    assert frame is not None
    silence: list[Piece] = []
    if lame is None:
        # With a tag, the decoder leaves out its own delay too: it gets one more frame for that.
        silence = [bits.ljust(frame.bytes, b"\0")]
        delay = frame.samples - _DECODER_DELAY
        lame = b"LAME".ljust(_PADDING_AT - 1, b"\0") + (delay << 12).to_bytes(3, "big")
    frames = (count + len(silence)).to_bytes(4, "big")
    tag = bits + bytes(frame.side_bytes) + b"Info" + (1).to_bytes(4, "big") + frames + lame
    return [tag.ljust(frame.bytes, b"\0"), *silence]


def _tag(head: bytes, frame: _Frame) -> _Tag | None:
    """Return what the tag in a first frame says, if it is one.

    Source: the Xing, Info (LAME) and VBRI (Fraunhofer) tags, as encoders write them.
    """
    if head[36:40] == b"VBRI":
        return _Tag(int.from_bytes(head[50:54], "big"), int.from_bytes(head[46:50], "big"), None)
    at = 4 + frame.side_bytes + (0 if head[1] & 1 else 2)
    if head[at : at + 4] not in (b"Xing", b"Info"):
        return None
    flags, at = int.from_bytes(head[at + 4 : at + 8], "big"), at + 8
    frames = size = 0
    if flags & 1:
        frames, at = int.from_bytes(head[at : at + 4], "big"), at + 4
    if flags & 2:
        size, at = int.from_bytes(head[at : at + 4], "big"), at + 4
    at += (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    lame = head[at : at + _LAME_BYTES]
    return _Tag(frames, size, lame if len(lame) == _LAME_BYTES and lame[0] else b"")
