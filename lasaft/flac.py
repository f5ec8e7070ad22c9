"""FLAC: how many samples its frames hold, whatever its header says, bare or in Ogg."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import IO

from lasaft.mpeg import Piece

# RFC 9639. The header's number of samples: 36 bits that end here.
_COUNT_AT, _HEADER_BYTES = 21, 26
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_LONGEST_FRAME_HEADER = 16
_WINDOW = 1 << 18
_OGG_PAGE, _OGG_BEFORE_FLAC = 27, 9  # bytes: a page's header; of the mapping's, before "fLaC"


def flac_in_ogg(file: IO[bytes], at: int, size: int) -> list[Piece]:
    """Return where in an Ogg file the parts of a FLAC file are; nothing where it holds no FLAC."""
    spans: list[Piece] = []
    while at < size:
        file.seek(at)
        head = file.read(_OGG_PAGE)
        if head[:4] != b"OggS" or len(head) < _OGG_PAGE:
            spans.append((at, size))  # a tag; whatever else it is, the decoder will stumble over it
            break
        sizes = file.read(head[26])
        start = at + _OGG_PAGE + len(sizes)
        at = min(start + sum(sizes), size)
        if not spans:
            if file.read(5) != b"\x7fFLAC":
                break
            start += _OGG_BEFORE_FLAC
        spans.append((start, at))
    return spans


def whole_flac(
    file: IO[bytes], size: int, pieces: Sequence[Piece]
) -> tuple[int, int, Sequence[Piece] | None]:
    """Return how many samples a FLAC file's header promises, and how many there are.

    Args:
        file: a FLAC file from its first byte on.
        size: of it, in bytes.
        pieces: where its parts are.

    Returns:
        Both numbers (0: not known), and the pieces with a right header; None where it is right.
    """
    file.seek(0)
    head = file.read(_HEADER_BYTES)
    (first, *rest), count = pieces, int.from_bytes(head[_COUNT_AT:], "big")
    stated = count & (1 << 36) - 1
    there = _samples(file, size, int.from_bytes(head[10:12], "big"))
    if there in (0, stated) or not isinstance(first, tuple):
        return stated, there, None
    right = (count - stated + there).to_bytes(_HEADER_BYTES - _COUNT_AT, "big")
    after = first[0] + _HEADER_BYTES, first[1]
    return stated, there, [head[:_COUNT_AT] + right, after, *rest]


def _samples(file: IO[bytes], size: int, block_samples: int) -> int:
    """Return where the last frame ends, in samples; 0 where none is found.

    What looks like a frame counts if it goes on where another ends.
    """
    ends: dict[int, int] = {}
    for stop in range(size, 0, -_WINDOW):
        begin = max(0, stop - _WINDOW)
        file.seek(begin)
        data = file.read(stop - begin + _LONGEST_FRAME_HEADER)
        for found in reversed(list(_SYNC.finditer(data, 0, stop - begin + 1))):
            frame = _frame(data[found.start() :][:_LONGEST_FRAME_HEADER], block_samples)
            if frame and frame[1] in ends:
                return ends[frame[1]]
            if frame:
                ends.setdefault(*frame)
    return ends.get(0, 0)


def _frame(head: bytes, block_samples: int) -> tuple[int, int] | None:
    """Return a frame's first sample and the one after its last; None: it is none."""
    if len(head) < 6 or not head[2] >> 4 or head[2] & 15 == 15 or head[3] >> 4 > 10 or head[3] & 1:
        return None
    kind, ones = head[2] >> 4, 8 - (head[4] ^ 0xFF).bit_length()
    number, at = head[4] & 0x7F >> ones, 5 + max(ones - 1, 0)
    for byte in head[5:at]:
        number = number << 6 | byte & 0x3F
    width = {6: 1, 7: 2}.get(kind, 0)
    known = 192 if kind == 1 else 144 << kind if kind < 6 else 1 << kind
    samples = int.from_bytes(head[at : at + width], "big") + 1 if width else known
    at += width + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if len(head) <= at or _crc8(head[:at]) != head[at]:
        return None
    first = number if head[1] & 1 else number * block_samples
    return first, first + samples


def _crc8(data: bytes) -> int:
    sum_ = 0
    for byte in data:
        sum_ ^= byte
        for _ in range(8):
            sum_ = sum_ << 1 ^ (0x107 if sum_ & 0x80 else 0)
    return sum_
