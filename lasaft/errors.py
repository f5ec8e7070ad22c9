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

from collections.abc import Sequence


class LasaftError(ValueError):
    """Base of every error caused by input: its text is one message for a person."""

    exit_code = 1


class ConfigError(LasaftError):
    """One or more options are wrong; ``problems`` holds one line for each."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)


class DataError(LasaftError):
    """A data set, a track or a shard is missing, damaged or not what it should be."""


class AudioError(LasaftError):
    """An audio file or a waveform cannot be used."""


class CheckpointError(LasaftError):
    """A checkpoint cannot be read, or does not fit the network."""


class StageError(LasaftError):
    """A stage did not finish: names what failed; everything that did finish is kept."""
