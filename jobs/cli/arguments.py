"""The words of a command line, taken apart into options, presets and flags."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lasaft.errors import Problem
from pipeline.config.options import Option, Raw, did_you_mean, no_such_option

# The name under which a network's variant is given; it is a group, not an option.
VARIANT = "model"
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*=")
_FLAGS = ("json", "help", "preset", VARIANT)


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
    presets: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    rerun: list[str] = field(default_factory=list)
    json: bool = False
    help: str | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def topic(self) -> str | None:
        """What help is asked for: a topic, the job's own page (empty), or none (None)."""
        return "presets" if self.help is None and self.presets == ["list"] else self.help


def known_name(typed: str, options: Mapping[str, Option]) -> str | None:
    """Return the leaf name that ``typed`` stands for (bare or dotted, ``-`` or ``_``), or None."""
    name = typed.replace("-", "_")
    if name in (VARIANT, f"{VARIANT}.variant"):
        return VARIANT
    leaf = name.rpartition(".")[2]
    option = options.get(leaf)
    return leaf if option is not None and name in (leaf, option.path) else None


def read_arguments(
    argv: Sequence[str],
    options: Mapping[str, Option],
    *,
    undashed: bool = False,
    refused: Mapping[str, str] | None = None,
    flags: Collection[str] = (),
    rerun: bool = False,
) -> Arguments:
    """Take a command line apart: ``--name VALUE``, ``--name=VALUE`` and ``name=VALUE``.

    Args:
        argv: the words after the program's name.
        options: the table of options.
        undashed: whether ``name VALUE`` without dashes is an option too.
        refused: names that are no options here, each with what to tell people.
        flags: names that take no value; as ``--name`` they are no options.
        rerun: whether ``--rerun STEP`` is known.
    """
    arguments = Arguments()
    words = list(argv)
    while words:
        word = words.pop(0)
        dashed = word.startswith("--") and len(word) > 2
        typed, equals, value = word.removeprefix("--").partition("=")
        if word == "-h" or (dashed and typed == "help"):
            arguments.help = value or (words.pop(0) if words and words[0][:1] != "-" else "")
        elif dashed and typed == "json" and not equals:
            arguments.json = True
        elif dashed and typed in flags and not equals:
            arguments.flags.add(typed)
        elif dashed or _ASSIGNMENT.match(word) or (undashed and known_name(word, options)):
            text = value if equals else _value(words)
            why_not = (refused or {}).get(typed.replace("-", "_"))
            if rerun and typed == "rerun":
                arguments.rerun += (text or "").split(",")
            elif why_not is not None:
                arguments.problems.append(Problem(typed, reason=why_not))
            else:
                _read_option(arguments, options, typed, text)
        else:
            arguments.problems.append(_stray(word, options))
            if re.match(r"-[A-Za-z]", word):
                _value(words)
    return arguments


def _value(words: list[str]) -> str | None:
    return None if not words or words[0].startswith("--") else words.pop(0)


def _read_option(
    arguments: Arguments, options: Mapping[str, Option], typed: str, value: str | None
) -> None:
    name = "preset" if typed == "preset" else known_name(typed, options)
    if name is None:
        arguments.problems.append(_unknown(typed, options))
    elif value is None:
        allowed = options[name].allowed if name in options else "a name"
        arguments.problems.append(Problem(name, reason="a value is missing", allowed=allowed))
    elif name == "preset":
        arguments.presets.append(value)
    else:
        arguments.given.append(Given(name, value))


def _unknown(typed: str, options: Mapping[str, Option]) -> Problem:
    name = typed.replace("-", "_")
    if any(option.section == name for option in options.values()):
        return Problem(
            name, reason=f"is a group of options, not an option (--help {name} lists them)"
        )
    problem = no_such_option(name, options)
    if name not in options and "did you mean" not in problem.reason:
        return replace(problem, reason=problem.reason + did_you_mean(name, _FLAGS))
    return problem


def _stray(word: str, options: Mapping[str, Option]) -> Problem:
    hint = did_you_mean(word.lstrip("-").replace("-", "_"), options)
    return Problem(word, reason=f"an option is written --name VALUE or name=VALUE{hint}")
