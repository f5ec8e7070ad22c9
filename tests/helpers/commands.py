"""What a command line gives: a configuration, or the problems that are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import parse
from jobs.cli.readme import ReadmeCommand, parse_readme
from lasaft.errors import ConfigError
from pipeline.config import RunConfig

# As the README has it; :func:`tests.jobs.conftest.readme_songs` makes it.
_README_SONGS = ("--musdb_root", "../repos/musdb18_wav")


def run_config(songs: str, *words: str) -> RunConfig:
    """Return the settings of jobs.run on ``songs``."""
    return parse(["--musdb_root", songs, *words], "run").config


def problems_of(*words: str, job: str = "run") -> list[str]:
    """Return the problems of a command line, a line each."""
    with pytest.raises(ConfigError) as caught:
        parse(words, job)
    return [str(problem) for problem in caught.value.problems]


def own_preset(folder: Path, text: str) -> str:
    """Write a preset of one's own and return its path."""
    path = folder / "own.yaml"
    path.write_text(text)
    return str(path)


def readme_command(*words: str) -> ReadmeCommand:
    """Return what jobs.main does on the README's songs."""
    return parse_readme([*_README_SONGS, *words])


def readme_problems(*words: str) -> list[str]:
    """Return the problems of a command line of jobs.main, a line each."""
    with pytest.raises(ConfigError) as caught:
        readme_command(*words)
    return [str(problem) for problem in caught.value.problems]
