"""The words of a command line, taken apart into options, words and flags."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lasaft.errors import Problem
from lasaft.options import Option, Raw, did_you_mean, no_such_option

# The name under which a network's variant is given; it is a group, not an option.
VARIANT = "model"
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*=")


@dataclass(frozen=True)
class Given:
    """One option as a person wrote it; ``origin`` names the preset, or is empty."""

    name: str
    raw: Raw
    origin: str = ""

    @property
    def shown(self) -> str:
        """The value as it was written, and where."""
        text = repr(self.raw) if not isinstance(self.raw, list) else f"[{', '.join(self.raw)}]"
        return text + (f" (in {self.origin})" if self.origin else "")


@dataclass
class Arguments:
    """What a command line says, before any value is understood."""

    given: list[Given] = field(default_factory=list)
    # By name, the values of what is given with one and is no option: presets, steps.
    values: dict[str, list[str]] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    words: list[str] = field(default_factory=list)  # what belongs to no option
    help: str | None = None
    problems: list[Problem] = field(default_factory=list)

    def all_of(self, name: str) -> list[str]:
        """Return each value that was given to one of ``values``."""
        return self.values.get(name, [])

    @property
    def topic(self) -> str | None:
        """What help is asked for: a topic, the command's own page (empty), or none (None)."""
        return "presets" if self.help is None and self.all_of("preset") == ["list"] else self.help


def known_name(typed: str, options: Mapping[str, Option]) -> str | None:
    """Return the leaf name that ``typed`` stands for (bare or dotted, ``-`` or ``_``), or None."""
    name = typed.replace("-", "_")
    if name in (VARIANT, f"{VARIANT}.variant") and _is_group(VARIANT, options):
        return VARIANT
    leaf = name.rpartition(".")[2]
    option = options.get(leaf)
    return leaf if option is not None and name in (leaf, option.path) else None


def _is_group(name: str, options: Mapping[str, Option]) -> bool:
    return any(option.section == name for option in options.values())


def read_arguments(
    argv: Sequence[str],
    options: Mapping[str, Option],
    *,
    undashed: bool = False,
    refused: Mapping[str, str] | None = None,
    flags: Collection[str] = (),
    values: Collection[str] = (),
    words: bool = False,
) -> Arguments:
    """Take a command line apart: ``--name VALUE``, ``--name=VALUE`` and ``name=VALUE``.

    Args:
        argv: the words after the program's name.
        options: the table of options.
        undashed: whether ``name VALUE`` without dashes is an option too.
        refused: names that are no options here, each with what to tell people.
        flags: names that take no value; as ``--name`` they are no options.
        values: names that take a value and are no options.
        words: whether the command takes words that belong to no option, such as files; all are
            behind ``--``.
    """
    arguments = Arguments()
    others = {"help", *flags, *values, *([VARIANT] if _is_group(VARIANT, options) else [])}
    left = list(argv)
    while left:
        word = left.pop(0)
        dashed = word.startswith("--") and len(word) > 2
        typed, equals, value = word.removeprefix("--").partition("=")
        name = typed.replace("-", "_")
        is_option = dashed or (undashed and known_name(word, options))
        if _ASSIGNMENT.match(word) and (not words or known_name(typed, options)):
            is_option = True
        if word == "-h" or (dashed and typed == "help"):
            arguments.help = value or (left.pop(0) if left and left[0][:1] != "-" else "")
        elif dashed and name in flags and not equals:
            arguments.flags.add(name)
        elif is_option:
            text = value if equals else _value(left)
            why_not = (refused or {}).get(name)
            if why_not is not None:
                arguments.problems.append(Problem(typed, reason=why_not))
            else:
                _read_option(arguments, options, typed, text, values=values, others=others)
        elif words and word == "--":
            arguments.words += left
            break
        elif words and (word == "-" or not word.startswith("-")):
            arguments.words.append(word)
        else:
            arguments.problems.append(_stray(word, options))
            if re.match(r"-[A-Za-z]", word):
                _value(left)
    return arguments


def _value(words: list[str]) -> str | None:
    return None if not words or words[0].startswith("--") else words.pop(0)


def _read_option(
    arguments: Arguments,
    options: Mapping[str, Option],
    typed: str,
    value: str | None,
    *,
    values: Collection[str],
    others: Collection[str],
) -> None:
    folded = typed.replace("-", "_")
    name = folded if folded in values else known_name(typed, options)
    if name is None:
        arguments.problems.append(_unknown(typed, options, others))
    elif value is None:
        allowed = options[name].allowed if name in options else "a name"
        arguments.problems.append(Problem(name, reason="a value is missing", allowed=allowed))
    elif name in values:
        arguments.values.setdefault(name, []).append(value)
    else:
        arguments.given.append(Given(name, value))


def _unknown(typed: str, options: Mapping[str, Option], others: Collection[str]) -> Problem:
    name = typed.replace("-", "_")
    if _is_group(name, options):
        return Problem(
            name, reason=f"is a group of options, not an option (--help {name} lists them)"
        )
    return no_such_option(name, options, others)


def _stray(word: str, options: Mapping[str, Option]) -> Problem:
    hint = did_you_mean(word.lstrip("-").replace("-", "_"), options)
    return Problem(word, reason=f"an option is written --name VALUE or name=VALUE{hint}")
