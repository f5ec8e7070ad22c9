"""One command of ``lasaft``: its words and options, its help, and every problem at once."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lasaft.cli.arguments import read_arguments
from lasaft.cli.builder import OptionBuilder
from lasaft.cli.help import WIDTH, line, option_page, row
from lasaft.config import Settings
from lasaft.errors import ConfigError, Problem, refuse
from lasaft.options import did_you_mean, options_of
from lasaft.output import be_quiet

# What every command takes without a value.
FLAGS = {
    "json": "prints the result as JSON",
    "quiet": "tells nothing but the result and what is wrong",
}


@dataclass(frozen=True)
class Given:
    """What a command line says.

    Args:
        words: what belongs to no option.
        options: of the command's own class.
        explicit: the names of the options that were given.
        json: print the result as JSON.
        flags: those of the command's own.
    """

    words: list[str]
    options: Any
    explicit: frozenset[str]
    json: bool
    flags: frozenset[str] = frozenset()


class NoOptions(Settings):
    """A command that has words alone."""


@dataclass(frozen=True)
class Verb:
    """One command.

    Args:
        summary: one line for its help.
        words: what its words are, in capitals; one that ends in ``...`` is there once or more.
        run: does the work and returns the exit code.
        options: declares its options.
        problems: of what it was given, besides those of single options.
        flags: its words without a value, each with its line of help.
    """

    summary: str
    words: tuple[str, ...]
    run: Callable[[Given], int]
    options: type[Settings] = NoOptions
    problems: Callable[[Given], Iterable[Problem]] = lambda given: ()
    flags: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_flags(self) -> dict[str, str]:
        """Its own flags, and those of every command."""
        return {**self.flags, **FLAGS}


def parse(name: str, verb: Verb, argv: Sequence[str]) -> Given | str:
    """Return what a command line asks of a command, or a page of help.

    Raises:
        ConfigError: every problem with the command line.
    """
    options = options_of(verb.options)
    found = read_arguments(argv, options, flags=verb.all_flags, words=True)
    if found.help is not None:
        return _help_page(name, verb, found.help)
    be_quiet("quiet" in found.flags)
    builder = OptionBuilder(options)
    builder.note(found.problems)
    builder.note(_missing_words(verb, found.words))
    builder.add(found.given)
    tree = builder.build(verb.options)
    explicit = frozenset(item.name for item in found.given)
    given = Given(found.words, tree, explicit, "json" in found.flags, frozenset(found.flags))
    if tree is not None and len(found.words) >= len(verb.words):
        builder.note(verb.problems(given))
    refuse(builder.problems)
    return given


def _missing_words(verb: Verb, words: Sequence[str]) -> Iterator[Problem]:
    for name in verb.words[len(words) :]:
        yield Problem(name.removesuffix("..."), reason="is missing")
    if not verb.words[-1].endswith("..."):
        for word in words[len(verb.words) :]:
            yield Problem(word, reason=f"is one word too many, allowed: {' '.join(verb.words)}")


def _help_page(name: str, verb: Verb, topic: str) -> str:
    options = options_of(verb.options)
    asked = topic.lstrip("-").replace("-", "_")
    if not asked:
        lines = [*textwrap.wrap(f"lasaft {name}: {verb.summary}", WIDTH), ""]
        lines.append(f"usage: lasaft {name} {' '.join(verb.words)} [--OPTION VALUE]...")
        lines += ["", *(text for option in options.values() for text in line(option))]
        lines += [
            text for flag, meaning in verb.all_flags.items() for text in row(f"--{flag}", meaning)
        ]
    elif asked in options:
        lines = list(option_page(options[asked]))
    else:
        hint = did_you_mean(asked, options)
        raise ConfigError(Problem("help", repr(topic), f"an option of {name}{hint}"))
    return "\n".join(lines) + "\n"


def near(path: Path) -> Path:
    """Return a path as seen from the working folder, if it is in there."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
