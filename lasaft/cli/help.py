"""Lines of help pages that fit a screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from lasaft.options import Option

WIDTH = 100
NAME_WIDTH = 28
_LONGEST_CHOICES = 44
_SHORT_KINDS = {
    "bool": "True|False", "ints": "A,B,...", "floats": "A,B,...", "names": "A,B,...",
    "pair": "A,B", "path": "PATH", "place": "PATH|ADDRESS", "range": "N|MIN:MAX",
}  # fmt: skip


def option_page(option: Option) -> Iterator[str]:
    """Yield the help on one option."""
    dotted = f"also --{option.path}, or {option.name}: in a preset"
    yield f"--{option.name}" + (f"    ({dotted})" if option.section else "")
    yield from textwrap.wrap(f"meaning: {option.description}", WIDTH, subsequent_indent=" " * 9)
    yield from textwrap.wrap(f"allowed: {option.allowed}", WIDTH, subsequent_indent=" " * 9)
    yield f"default: {shown(option.default)}"


def line(option: Option) -> list[str]:
    """Return an option with its default, in a line or two of a page."""
    head = f"--{option.name} {shown(option.default)}"
    return row(head, f"{option.description} [{_short_allowed(option)}]")


def row(head: str, text: str) -> list[str]:
    """Return two columns."""
    return textwrap.wrap(
        f"  {head:<{NAME_WIDTH - 1}} {text}", WIDTH, subsequent_indent=" " * (NAME_WIDTH + 2),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def wrapped(title: str, words: Sequence[str]) -> list[str]:
    """Return a list of words with its title."""
    text = f"{title}: {', '.join(words)}"
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def shown(value: object) -> str:
    """Return a default as a person writes it on the command line.

    >>> shown(("vocals", "drums"))
    'vocals,drums'
    """
    return ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)


def _short_allowed(option: Option) -> str:
    low, high = (None if end is None else f"{end:.12g}" for end in (option.low, option.high))
    above = ">" if option.low_excluded else ">="
    match option.kind:
        case _ if option.choices:
            joined = "|".join(option.choices)
            return joined if len(joined) <= _LONGEST_CHOICES else f"{len(option.choices)} choices"
        case "int" | "float" if low is not None and high is not None and not option.low_excluded:
            return f"{low}..{high}"
        case "int" | "float":
            return ", ".join(
                part
                for part in (f"{above}{low}" if low else "", f"<={high}" if high else "")
                if part
            )
        case _:
            return _SHORT_KINDS.get(option.kind, "TEXT")
