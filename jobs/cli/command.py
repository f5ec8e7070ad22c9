"""The command line of a job becomes a command: a configuration that is checked as a whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.cli.help import help_page
from jobs.cli.job_table import JOBS, Job, steps_of
from jobs.cli.presets import read_preset
from lasaft.cli.arguments import VARIANT, Given, read_arguments
from lasaft.cli.builder import OptionBuilder
from lasaft.cli.grammar import FLAGS
from lasaft.config import VARIANTS
from lasaft.errors import ConfigError, Problem, refuse
from lasaft.options import Option, did_you_mean
from lasaft.output import Colour, be_quiet, say
from pipeline.cluster.address import address_problems
from pipeline.cluster.inputs import InputFolder
from pipeline.cluster.run_store import LARGE, RunStore
from pipeline.config import RunConfig
from pipeline.config.data import SYNTHETIC_COUNTS
from pipeline.config.folders import RunFolder, misplaced
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
        show: prints a part of the result at once, of which the result's text is the rest.
    """

    job: str
    config: RunConfig
    json: bool = False
    help: str | None = None
    again: str = "the same command"
    flags: frozenset[str] = frozenset()
    rerun: frozenset[str] = frozenset()
    show: Callable[[str, Colour], None] = lambda text, colour: None


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
        flags={*FLAGS, *JOBS[job].flags},
        values=("preset", "rerun") if job == "run" else ("preset",),
    )
    be_quiet("quiet" in arguments.flags)
    row = JOBS[job].told(arguments.flags)
    if arguments.topic is not None:
        return Command(job, RunConfig(), help=help_page(job, arguments.topic, options))
    rerun = [step for steps in arguments.all_of("rerun") for step in steps.split(",")]
    builder = Builder(options)
    builder.add_presets(arguments.all_of("preset"))
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
        for step in [step for step in rerun if step not in steps_of(config)]:
            others = ("space", "musdb_root", *SYNTHETIC_COUNTS)
            builder.note([Problem("rerun", repr(step), ", ".join(steps_of(config)), others=others)])
    refuse(builder.problems)
    assert config is not None, "a configuration that has no problem was refused"
    flags = frozenset(arguments.flags - FLAGS.keys())
    return Command(job, config, "json" in arguments.flags, flags=flags, rerun=frozenset(rerun))


def bring(config: RunConfig, job: Job) -> None:
    """Bring what a job looks at before it begins to this machine from where it lies.

    Raises:
        ConfigError, DataError: nothing lies there, or the store does not answer or refuses.
    """
    folder, options = RunFolder.of(config), all_options()
    store = RunStore(folder)
    if store.remote is not None:
        say(f"looking at {folder.shown} ...")
        store.remote.reach()
        store.pull(but=LARGE, own={path.name for path in (folder.config, *folder.made)})
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


class Builder(OptionBuilder):
    """Takes presets too, and the network's name, which sets several options."""

    def add_presets(self, presets: Sequence[str]) -> None:
        """Put presets on top, in their order."""
        for preset in presets:
            try:
                given, problems = read_preset(preset, self.options)
            except ConfigError as error:
                self.note(error.problems)
                self.in_doubt |= self.options.keys()  # it may have set any of them
            else:
                self.note(problems)
                self.add(given)

    def add(self, layer: Sequence[Given]) -> None:
        """Put a layer on top: its network's name first, then its options from left to right."""
        for given in layer:
            if given.name == VARIANT:
                self._add_variant(given)
        super().add([given for given in layer if given.name != VARIANT])

    def _add_variant(self, given: Given) -> None:
        row = VARIANTS.get(given.raw) if isinstance(given.raw, str) else None
        if row is not None:
            self.add_values(row)
            return
        hint = did_you_mean(str(given.raw), VARIANTS)
        self.note([Problem(VARIANT, given.shown, f"{', '.join(VARIANTS)}{hint}")])

    def set_by(self, name: str) -> Collection[str]:
        """Return the options that ``name`` sets."""
        return _SET_BY_NETWORKS if name == VARIANT else (name,)


_SET_BY_NETWORKS = frozenset(name for row in VARIANTS.values() for name in row) | {VARIANT}
