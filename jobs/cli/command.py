"""The command line of a job becomes a command: a configuration that is checked as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from jobs.cli.arguments import VARIANT, Given, known_name, read_arguments
from jobs.cli.help import help_page
from jobs.cli.job_table import JOBS, Job, steps_of
from jobs.cli.presets import read_preset
from lasaft.config import VARIANTS
from lasaft.errors import ConfigError, Problem, refuse
from pipeline.cluster.address import address_problems
from pipeline.cluster.inputs import InputFolder
from pipeline.cluster.run_store import LARGE, RunStore
from pipeline.config import RunConfig
from pipeline.config.data import SYNTHETIC_COUNTS
from pipeline.config.folders import RunFolder, misplaced
from pipeline.config.options import Option, did_you_mean, problems_of, value_of
from pipeline.config.roles import all_options
from pipeline.config.run import without_effect


@dataclass(frozen=True)
class Command:
    """A job and its configuration.

    Args:
        job: the job's name.
        config: every option, with absolute paths.
        json: print the result as JSON.
        flags: what else the job is told to do, such as ``verify``.
        rerun: the steps of a run to do again although nothing has changed.
        help: a page to print instead of doing the work.
        again: what goes on after an interruption, in words.
    """

    job: str
    config: RunConfig
    json: bool = False
    help: str | None = None
    again: str = "the same command"
    flags: frozenset[str] = frozenset()
    rerun: frozenset[str] = frozenset()


def parse(argv: Sequence[str], job: str) -> Command:
    """Return what a command line asks for.

    Presets come first, then the named network, then the other options from left to right.

    Raises:
        ConfigError: every problem with the command line.
    """
    options = all_options()
    arguments = read_arguments(
        argv,
        options,
        refused=flags_of_others(job, options),
        flags=JOBS[job].flags,
        rerun=job == "run",
    )
    row = JOBS[job].told(arguments.flags)
    if arguments.topic is not None:
        return Command(job, RunConfig(), help=help_page(job, arguments.topic, options))
    builder = Builder(options)
    builder.add_presets(arguments.presets)
    builder.note(arguments.problems)
    builder.add(arguments.given)
    config = builder.build(RunConfig)
    if config is not None:
        # Absolute, because workers have other working folders.
        if isinstance(config.output_dir, Path):
            output_dir = config.output_dir.expanduser().absolute()
            config = config.model_copy(update={"output_dir": output_dir})
        bring(config, row)
        refuse(misplaced(config))
        # First what is missing: that an option has no effect may only follow from it.
        builder.note(row.needs(config))
        if row.reads(options["address"]):
            builder.note(address_problems(config.cluster))
        builder.note(idle_options(config, explicit_names(arguments.given), job, row))
        for step in [step for step in arguments.rerun if step not in steps_of(config)]:
            others = ("space", "musdb_root", *SYNTHETIC_COUNTS)
            builder.note([Problem("rerun", repr(step), ", ".join(steps_of(config)), others=others)])
    refuse(builder.problems)
    assert config is not None, "a configuration that has no problem was refused"
    flags, rerun = frozenset(arguments.flags), frozenset(arguments.rerun)
    return Command(job, config, arguments.json, flags=flags, rerun=rerun)


def bring(config: RunConfig, job: Job) -> None:
    """Bring what a job looks at before it begins to this machine from where it lies.

    Raises:
        ConfigError, DataError: nothing lies there, or the store does not answer or refuses.
    """
    folder, options = RunFolder.of(config), all_options()
    store = RunStore(folder)
    if store.remote is not None:
        store.remote.reach()
        store.pull(but=LARGE)
    for source in folder.inputs:
        if job.reads(options[source.option]):
            InputFolder(source).list()


def explicit_names(given: Sequence[Given]) -> frozenset[str]:
    """Return the options that are given, without the named network."""
    return frozenset(item.name for item in given) - {VARIANT}


def flags_of_others(job: str, options: Mapping[str, Option]) -> dict[str, str]:
    """Return the flags of other jobs that are no options of this one, each with the reason."""
    run = {} if job == "run" else {"rerun": "does a step of jobs.run again; leave it out"}
    return run | {
        flag: f"is a flag of jobs.{other}, and has no effect in jobs.{job}; leave it out"
        for other, row in JOBS.items()
        for flag in row.flags.keys() - JOBS[job].flags.keys()
        if flag not in options or not JOBS[job].reads(options[flag])
    }


def idle_options(
    config: RunConfig, explicit: frozenset[str], job: str, row: Job
) -> Iterator[Problem]:
    """Yield the problem of each option that the command line gives and that does nothing here.

    Args:
        config: every option.
        explicit: the options given.
        job: the job's name.
        row: what the job reads, with its flags.
    """
    options = all_options()
    idle = {**without_effect(config), **row.idle(config)}
    for name in sorted(explicit & options.keys()):
        option, problem = options[name], idle.get(name)
        value = option.value_in(config)
        switched_off = value is option.default and value in (None, False)
        if not row.reads(option):
            reason = f"has no effect in jobs.{job}{row.suffix}; leave it out"
            yield Problem(name, reason=reason)
        elif problem is not None and not switched_off:
            yield problem


Tree = TypeVar("Tree", bound=RunConfig)
Values = dict[str, Any]


class Builder:
    """Collects options layer by layer (later ones win) and validates them together.

    An option is in doubt once it has a problem: what its value is meant to be is not known. A rule
    that looks at an option in doubt says nothing, so that no problem follows from another.
    """

    def __init__(self, options: Mapping[str, Option]) -> None:
        self.options = options
        self.problems: list[Problem] = []
        self._values: Values = {}
        self._written: dict[str, str] = {}
        self._in_doubt: set[str] = set()

    def add_presets(self, presets: Sequence[str]) -> None:
        """Put presets on top, in their order."""
        for preset in presets:
            try:
                given, problems = read_preset(preset, self.options)
            except ConfigError as error:
                self.note(error.problems)
                self._in_doubt |= self.options.keys()  # it may have set any of them
            else:
                self.note(problems)
                self.add(given)

    def add(self, layer: Sequence[Given]) -> None:
        """Put a layer on top: its network's name first, then its options from left to right."""
        for given in layer:
            if given.name == VARIANT:
                self._add_variant(given)
        for given in layer:
            if given.name != VARIANT:
                self.add_values({given.name: value_of(self.options[given.name], given.raw)})
                self._written[given.name] = given.shown

    def add_values(self, values: Mapping[str, Any]) -> None:
        """Put typed values on top, by leaf name."""
        self._values.update(values)
        self._in_doubt -= values.keys()

    def _add_variant(self, given: Given) -> None:
        row = VARIANTS.get(given.raw) if isinstance(given.raw, str) else None
        if row is not None:
            self.add_values(row)
            return
        hint = did_you_mean(str(given.raw), VARIANTS)
        self.note([Problem(VARIANT, given.shown, f"{', '.join(VARIANTS)}{hint}")])

    def build(self, tree: type[Tree]) -> Tree | None:
        """Validate; problems are added to ``problems``.

        An option with a problem is left out and the rest validated again, so that one wrong
        option hides no other.
        """
        while True:
            try:
                return tree.model_validate(_nested(self._values, self.options))
            except ValidationError as error:
                found = problems_of(error, self.options, self._written)
            self.note(found)
            wrong = {name for problem in found for name in self._at_fault(problem)}
            if not wrong:
                return None
            self._in_doubt |= wrong
            for name in wrong:
                del self._values[name]

    def _at_fault(self, problem: Problem) -> set[str]:
        """Return the options to leave out: the one told of, or those its default clashes with."""
        named = {problem.option} & self._values.keys()
        return named or set(problem.others) & self._values.keys()

    def note(self, problems: Iterable[Problem]) -> None:
        """Add the problems that do not follow from an option in doubt."""
        told = [
            problem
            for problem in dict.fromkeys(problems)
            if problem not in self.problems
            and not self._in_doubt & {problem.option, *problem.others}
        ]
        self.problems += told
        for problem in told:
            name = known_name(problem.option, self.options)
            if name is not None:
                self._in_doubt |= _SET_BY_NETWORKS if name == VARIANT else {name}


_SET_BY_NETWORKS = frozenset(name for row in VARIANTS.values() for name in row) | {VARIANT}


def _nested(values: Values, options: Mapping[str, Option]) -> Values:
    tree: Values = {}
    for name, value in values.items():
        section = options[name].section
        place = tree.setdefault(section, {}) if section else tree
        place[name] = value
    return tree
