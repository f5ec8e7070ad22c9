"""Standard output and error that lose no result: whatever they encode, full, closed or unread."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Control characters, which a terminal obeys; what ends a line; what turns the writing around.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202d\u202e]")
# What embeds writing of another direction, and so can reorder the rest of a line, is in names all
# the same, where other programs have put it.
_ESCAPED = re.compile(f"{_HARMFUL.pattern}|[\u202a-\u202c\u2066-\u2069]")


_COLOURS = {"red": 31, "yellow": 33}
Colour = Literal["red", "yellow", ""]
_quiet = [False]  # of this process


def be_quiet(quiet: bool) -> None:
    """Let this process say nothing but its result and what is wrong, or all."""
    _quiet[:] = [quiet]


def is_quiet() -> bool:
    """Return whether progress and notes are unwanted."""
    return _quiet[0]


def say(text: str) -> None:
    """Tell the user something that is not the result, and not wrong."""
    if not is_quiet():
        tell(text)


def tell(text: str, head: str = "") -> None:
    """Tell the user what is wrong; ``head`` says who tells it."""
    sys.stderr.write(coloured(head, "red", sys.stderr) + shown_lines(text) + "\n")
    sys.stderr.flush()


def stopping() -> None:
    """Say that a signal has been heard."""
    # After ^C, which the terminal shows itself, and beside a bar.
    tell("\n" * sys.stderr.isatty() + "stopping ...")


def coloured(text: str, colour: Colour, stream: IO[str]) -> str:
    """Return text as a terminal shows it in a colour; elsewhere, and with NO_COLOR, as it is."""
    plain = not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or not (colour and text) else f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def is_harmless(name: str) -> bool:
    """Return whether a name holds nothing but what people write names with."""
    return not _HARMFUL.search(name)


def shown(name: str) -> str:
    r"""Return a name with what a terminal obeys, or would reorder a line for, escaped.

    >>> print(shown("a\x1b[31mb ヒカル"))
    a\x1b[31mb ヒカル
    """
    return _ESCAPED.sub(lambda found: repr(found[0])[1:-1], name)


def shown_lines(text: str) -> str:
    """Return text of several lines with its other harmful characters escaped."""
    return "\n".join(map(shown, text.split("\n")))


class _Output(io.FileIO):
    """A file that takes everything: once nobody reads it, or it is full, the rest goes nowhere.

    That it is full is raised once.
    """

    _lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of ``data`` and return how much."""
        try:
            if not self._lost:
                return super().write(data)
        except OSError as error:
            self._lost = True
            if error.errno != errno.EPIPE:
                raise
        return memoryview(data).nbytes


def keep_output() -> None:
    """Let nothing that this process prints end it; a stream that somebody has replaced stays.

    What an encoding lacks is escaped, who stops reading misses the rest, and where a stream is
    closed no other file takes its place.
    """
    for number in range(3):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            encoding = "utf-8" if stream is None else stream.encoding
            file = io.BufferedWriter(_Output(number, "w", closefd=False))
            lines = number == 2 or file.isatty()
            made = io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=lines)
            setattr(sys, name, made)
