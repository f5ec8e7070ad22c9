"""The command line of a job becomes a command: a configuration that is checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from jobs.cli.arguments import VARIANT, Arguments, Given, read_arguments
from jobs.cli.help import help_page
from jobs.cli.job_table import JOBS, Job
from jobs.cli.presets import read_preset
from lasaft.config import VARIANTS
from lasaft.errors import ConfigError
from pipeline.config import RunConfig
from pipeline.config.options import Option, did_you_mean, options_of, problems_of, value_of
from pipeline.config.run import without_effect


@dataclass(frozen=True)
class Command:
    """A job and its configuration.

    Args:
        job: the job's name.
        config: every option, with absolute paths.
        explicit: the options that the command line itself gives.
        json: print the result as JSON.
        flags: what else the job is told to do, such as ``verify``.
        help: a page to print instead of doing the work.
        again: what goes on after an interruption, in words.
    """

    job: str
    config: RunConfig
    explicit: frozenset[str] = frozenset()
    json: bool = False
    help: str | None = None
    again: str = "the same command"
    flags: frozenset[str] = frozenset()


def parse(argv: Sequence[str], job: str) -> Command:
    """Return what a command line asks for.

    Presets come first, then the named network, then the other options from left to right.

    Raises:
        ConfigError: every problem with the command line.
    """
    options = options_of(RunConfig)
    arguments = read_arguments(
        argv, options, refused=flags_of_others(job, options), flags=JOBS[job].flags
    )
    row = JOBS[job].told(arguments.flags)
    if arguments.help is not None or arguments.presets == ["list"]:
        page = help_page(job, arguments.help if arguments.help is not None else "presets", options)
        return Command(job, RunConfig(), help=page)
    builder = Builder(options)
    builder.note(arguments.problems)
    add_presets(builder, arguments)
    builder.add(arguments.given)
    config = builder.build(RunConfig)
    explicit = explicit_names(arguments.given)
    if config is not None:
        config = with_absolute_paths(config)
        check_effects(builder, config, explicit, job, row)
        builder.note(list(row.needs(config)))
    builder.raise_problems()
    assert config is not None, "a configuration that has no problem was refused"
    return Command(job, config, explicit, arguments.json, flags=frozenset(arguments.flags))


def add_presets(builder: Builder, arguments: Arguments) -> None:
    """Put the presets of a command line, in their order, on top of ``builder``."""
    for preset in arguments.presets:
        try:
            builder.add(read_preset(preset, builder.options))
        except ConfigError as error:
            builder.note(error.problems)


def explicit_names(given: Sequence[Given]) -> frozenset[str]:
    """Return the options that are given, without the named network."""
    return frozenset(item.name for item in given) - {VARIANT}


def flags_of_others(job: str, options: Mapping[str, Option]) -> dict[str, str]:
    """Return the flags of other jobs that are no options of this one, each with the reason."""
    return {
        flag: f"is a flag of jobs.{other}, and has no effect in jobs.{job}; leave it out"
        for other, row in JOBS.items()
        for flag in row.flags.keys() - JOBS[job].flags.keys()
        if flag not in options or not JOBS[job].reads(options[flag])
    }


def check_effects(
    builder: Builder,
    config: RunConfig,
    explicit: frozenset[str],
    job: str,
    row: Job | None = None,
) -> None:
    """Note the options given on the command line that do nothing here.

    Args:
        builder: takes the problems.
        config: every option.
        explicit: the options given.
        job: the job's name.
        row: what the job reads (None: as without any flag).
    """
    row = row or JOBS[job]
    idle = without_effect(config) | row.idle(config)
    for name in sorted(explicit):
        option = builder.options[name]
        value = getattr(getattr(config, option.section), name) if option.section else None
        switched_off = value is option.default and value in (None, False)
        if not row.reads(option):
            builder.note([f"{name}: has no effect in jobs.{job}{row.suffix}; leave it out"])
        elif idle.get(name) and not switched_off:
            builder.note([f"{name}: has no effect, because {idle[name]}; leave it out"])


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return ``config`` with an absolute ``output_dir``: workers have other working folders."""
    return config.model_copy(update={"output_dir": config.output_dir.expanduser().absolute()})


Tree = TypeVar("Tree", bound=RunConfig)
Values = dict[str, Any]


class Builder:
    """Collects options layer by layer (later ones win) and validates them together."""

    def __init__(self, options: Mapping[str, Option]) -> None:
        self.options = options
        self.problems: list[str] = []
        self._values: Values = {}
        self._written: dict[str, str] = {}
        self._dropped: list[str] = []

    def add(self, layer: Sequence[Given]) -> None:
        """Put a layer on top: its network's name first, then its options from left to right."""
        for given in layer:
            if given.name == VARIANT:
                self._add_variant(given)
        for given in layer:
            if given.name != VARIANT:
                self._values[given.name] = value_of(self.options[given.name], given.raw)
                self._written[given.name] = given.shown

    def add_values(self, values: Mapping[str, Any]) -> None:
        """Put typed values on top, by leaf name."""
        self._values.update(values)

    def _add_variant(self, given: Given) -> None:
        row = VARIANTS.get(given.raw) if isinstance(given.raw, str) else None
        if row is None:
            hint = did_you_mean(str(given.raw), VARIANTS)
            self.problems.append(f"model: got {given.shown}, allowed: {', '.join(VARIANTS)}{hint}")
        else:
            self.add_values(row)

    def build(self, tree: type[Tree]) -> Tree | None:
        """Validate; problems are added to ``problems``.

        An option with a problem is left out and the rest validated again, so that one wrong
        option hides no other. What is found then counts unless it speaks of an option left out.
        """
        while True:
            try:
                return tree.model_validate(_nested(self._values, self.options))
            except ValidationError as error:
                lines = problems_of(error, self.options, self._written)
            self.note(lines)
            wrong = self._at_fault({line.partition(":")[0] for line in lines})
            if not wrong:
                return None
            for name in wrong:
                del self._values[name]
            self._dropped.extend(wrong)

    def _at_fault(self, subjects: set[str]) -> set[str]:
        """Return the options to leave out: those complained about, or their groups' others."""
        named = subjects & self._values.keys()
        groups = {self.options[name].section for name in subjects & self.options.keys()}
        return named or {name for name in self._values if self.options[name].section in groups}

    def note(self, lines: Sequence[str]) -> None:
        """Add the problems that do not follow from an option left out before."""
        for line in lines:
            words = re.findall(r"\w+", line)
            if line not in self.problems and not any(name in words for name in self._dropped):
                self.problems.append(line)

    def raise_problems(self) -> None:
        """Raise what was found, if anything was.

        Raises:
            ConfigError: all problems.
        """
        if self.problems:
            raise ConfigError(self.problems)


def _nested(values: Values, options: Mapping[str, Option]) -> Values:
    tree: Values = {}
    for name, value in values.items():
        section = options[name].section
        place = tree.setdefault(section, {}) if section else tree
        place[name] = value
    return tree
