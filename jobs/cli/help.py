"""Help pages that fit a screen: one for a job, one for each group, one for each option."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from jobs.cli.job_table import JOBS, STEPS
from jobs.cli.presets import PRESETS
from lasaft.cli.grammar import FLAGS
from lasaft.cli.help import WIDTH, line, option_page, row, wrapped
from lasaft.config import VARIANTS
from lasaft.errors import ConfigError, Problem
from lasaft.options import Option, did_you_mean
from lasaft.parts import MODULATIONS
from pipeline.config.plain_yaml import NamedFiles
from pipeline.search.space_reader import GRAMMAR, SPACES

_GROUPS = {
    "model": "network, spectrogram, sources (--model NAME: --help networks)",
    "data": "songs, shards, how windows are drawn",
    "train": "batches, losses, optimiser, stopping, what is kept",
    "search": "what is searched, how trials are chosen and ended, budget (--help spaces)",
    "evaluate": "separation and scoring of whole songs",
    "tracking": "names of the run, MLflow",
    "cluster": "the Ray cluster",
    "readme": "the words that only the README's command line has",
}


def help_page(job: str, topic: str, options: Mapping[str, Option]) -> str:
    """Return the help on ``topic``: nothing (the job), a group, an option, presets or networks.

    Raises:
        ConfigError: there is no such topic.
    """
    name = topic.lstrip("-").replace("-", "_").rpartition(".")[2]
    mine = {key: option for key, option in options.items() if JOBS[job].reads(option)}
    groups = {option.section for option in mine.values()} - {""}
    if not name:
        lines = _job_page(job, mine)
    elif name in ("presets", "preset"):
        lines = _files_page(PRESETS, "takes")
    elif name in ("networks", "network"):
        lines = _networks_page()
    elif name == "spaces":
        lines = [*_files_page(SPACES, "searches"), "", "a file of your own:", GRAMMAR.rstrip()]
    elif name in groups:
        lines = _group_page(name, mine)
    elif name in options:
        lines = _option_page(options[name])
    else:
        topics = [*groups, "presets", "networks", "spaces", *mine]
        groups_shown = ", ".join(sorted(groups))
        hint = did_you_mean(name, topics)
        allowed = f"{groups_shown}, presets, networks, or an option{hint}"
        raise ConfigError(Problem("help", repr(topic), allowed))
    return "\n".join(lines) + "\n"


def _job_page(job: str, mine: Mapping[str, Option]) -> Iterator[str]:
    yield from textwrap.wrap(f"python -m jobs.{job}: {JOBS[job].summary}", WIDTH)
    yield ""
    yield f"usage: python -m jobs.{job} [--preset NAME|FILE] [--model NAME] [--OPTION VALUE]..."
    yield "       (--n_fft 2048, --n-fft 2048, --model.n_fft 2048 and n_fft=2048 are the same)"
    yield ""
    yield "the usual options, with their defaults"
    for name in JOBS[job].usual:
        yield from line(mine[name])
    yield ""
    yield "groups of options (--help GROUP lists all of one, --help OPTION explains one)"
    for group, text in _GROUPS.items():
        count = sum(option.section == group for option in mine.values())
        if count:
            yield from row(group, f"{count} options: {text}")
    yield ""
    yield from wrapped("presets (--help presets)", PRESETS.names())
    yield from wrapped("networks (--help networks)", list(VARIANTS))
    yield ""
    for name, flag in JOBS[job].flags.items():
        yield from row(f"--{name}", flag.summary)
    if job == "run":
        yield from row("--rerun STEP", f"does a step again: {', '.join(STEPS)}")
    for name, meaning in FLAGS.items():
        yield from row(f"--{name}", meaning)


def _group_page(group: str, mine: Mapping[str, Option]) -> Iterator[str]:
    yield f"{group}: {_GROUPS[group]}; with defaults"
    for option in mine.values():
        if option.section == group:
            yield from line(option)


def _files_page(files: NamedFiles, what: str) -> Iterator[str]:
    option = files.option
    yield f"--{option} NAME {what} one of these, --{option} FILE.yaml a file of your own:"
    for name in files.names():
        yield from row(name, files.first_line(name))


def _networks_page() -> Iterator[str]:
    yield "--model NAME sets these options; others that are given win over them:"
    for name, values in VARIANTS.items():
        settings = " ".join(f"{key}={value}" for key, value in values.items())
        yield from row(name, settings)


def _option_page(option: Option) -> Iterator[str]:
    yield from option_page(option)
    if option.name == "modulation":
        for name, declared in MODULATIONS.items():
            yield from row(name, declared.summary)
