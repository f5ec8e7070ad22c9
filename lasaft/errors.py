"""Every error that a user's input can cause.

    LasaftError
    ├── ConfigError        an option or a combination of options (lists every problem at once)
    ├── DataError          a data set, a track or a shard
    ├── AudioError         one audio file or waveform
    ├── CheckpointError    a checkpoint or a file said to be one
    └── StageError         a stage that ended without its whole result

Bugs of our own are ``AssertionError``; nothing else is raised on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass


class LasaftError(ValueError):
    """Base of every error caused by input: its text is one message for a person."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an option; ``str`` of it is one line for a person."""

    # The option, by the name that the line begins with; empty for a text that names none.
    option: str = ""
    got: str | float | None = None  # the value (None: not shown)
    allowed: str = ""  # what the option takes
    _: KW_ONLY
    reason: str = ""  # what is wrong, in words
    # The options whose values the rule looks at too. Where one of them is wrong itself, nothing can
    # be said yet about this rule.
    others: tuple[str, ...] = ()
    where: str = ""  # the file, and the line, in which it stands

    def __str__(self) -> str:
        got = f"got {self.got}" if self.got is not None else ""
        allowed = f"allowed: {self.allowed}" if self.allowed else ""
        said = ", ".join(part for part in (got, self.reason, allowed) if part)
        return ": ".join(part for part in (self.where, self.option, said) if part)


def no_effect(names: Iterable[str], because: str, *others: str) -> dict[str, Problem]:
    """Return the problem of giving each of some options that do nothing with the others chosen.

    Args:
        names: the options that do nothing.
        because: the reason, in words.
        others: the options that make it so.

    >>> print(no_effect(["gain_db"], "gain_probability is 0", "gain_probability")["gain_db"])
    gain_db: has no effect, because gain_probability is 0; leave it out
    """
    reason = f"has no effect, because {because}; leave it out"
    return {name: Problem(name, reason=reason, others=others) for name in names}


class ConfigError(LasaftError):
    """One or more options are wrong: ``problems`` are records or lines of text."""

    exit_code = 2

    def __init__(self, problems: str | Problem | Iterable[str | Problem]) -> None:
        listed = [problems] if isinstance(problems, str | Problem) else problems
        self.problems = [Problem(reason=one) if isinstance(one, str) else one for one in listed]
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[Problem]]]:
        return type(self), (self.problems,)


def refuse(problems: Iterable[Problem]) -> None:
    """Raise all problems as one error, if there are any.

    Raises:
        ConfigError: there are problems. Inside a pydantic validator it keeps its records.
    """
    if found := list(problems):
        raise ConfigError(found)


class DataError(LasaftError):
    """A data set, a track or a shard is missing, damaged or not what it should be."""


class AudioError(LasaftError):
    """An audio file or a waveform cannot be used."""


class CheckpointError(LasaftError):
    """A checkpoint cannot be read, or does not fit the network."""


class StageError(LasaftError):
    """A stage did not finish: names what failed; everything that did finish is kept."""
