"""The command line of the LaSAFT README: its own words beside the options of a run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from jobs.cli.command import (
    Builder,
    Command,
    bring,
    explicit_names,
    flags_of_others,
    idle_options,
)
from jobs.cli.help import help_page
from jobs.cli.job_table import JOBS, needs_estimates, needs_songs_and_start
from lasaft.cli.arguments import VARIANT, Arguments, Given, read_arguments
from lasaft.cli.grammar import FLAGS
from lasaft.config import Settings, option, variant_name
from lasaft.errors import ConfigError, Problem, refuse
from lasaft.options import options_of, value_of
from lasaft.output import be_quiet
from pipeline.config import RunConfig, from_json
from pipeline.config.folders import RunFolder, misplaced
from pipeline.config.roles import all_options

_MLFLOW = "MLflow is what records here (True), and its page shows every run: mlflow ui"
_REFUSED_LOGS = ("wandb", "tensorboard")
# Options of the reference's code that are not ours, each with what to do instead.
_REFUSED = {
    "auto_lr_find": "not offered here, allowed: a learning rate (lr)",
    "unfreeze_stft_from": "did nothing in the reference either; leave it out",
    "estimates_dir": "is for jobs.evaluate, which scores them",
    "scores_dir": "is for jobs.evaluate, which puts them on the board",
    "output_dir": "is made of ckpt_root_path, model and run_id here; give those",
    "rerun": "is for jobs.run, which works in steps; here another run_id begins anew",
    "checkpoint": "is found by ckpt_root_path, model, run_id and epoch here; give those",
}


class ReadmeOptions(Settings):
    """The words that only the README's command line has."""

    problem_name: Literal["conditioned_separation"] = option(
        "conditioned_separation", "the only problem there is"
    )
    mode: Literal["train", "eval"] = option("train", "train a network, or score a trained one")
    ckpt_root_path: Path = option(
        Path("etc/checkpoints"), "runs lie in <ckpt_root_path>/<model>/<run_id>"
    )
    epoch: str | None = option(None, "eval: a kept epoch, such as 7 (None: the best)")
    target_name: str | None = option(None, "one source to train on: vocals, drum, bass, other")
    one_hot_mode: bool = option(False, "control_vector_type one_hot_mode")


class ReadmeTree(RunConfig):
    """The options of a run and the README's own words."""

    readme: ReadmeOptions = ReadmeOptions()


@dataclass(frozen=True)
class ReadmeCommand(Command):
    """What the README's command line asks for: a mode, and a configuration with an output_dir."""

    mode: Literal["train", "eval"] = "train"


def parse_readme(argv: Sequence[str], now: datetime | None = None) -> ReadmeCommand:
    """Return what the README's command line asks for.

    Args:
        argv: the words after ``main.py``.
        now: the time that names a run without a ``run_id``.

    Raises:
        ConfigError: every problem with the command line.
    """
    options = options_of(ReadmeTree)
    arguments = read_arguments(
        argv, options, undashed=True, refused=flags_of_others("main", options) | _REFUSED,
        flags=FLAGS, values=("preset",),
    )  # fmt: skip
    be_quiet("quiet" in arguments.flags)
    if arguments.topic is not None:
        page = help_page("main", arguments.topic, options)
        return ReadmeCommand("main", RunConfig(), help=page)
    arguments = replace(arguments, given=list(_translated(arguments)))
    if _word(arguments, "mode") == "eval":
        return _evaluation(arguments)
    return _training(arguments, now or datetime.now())


def _word(arguments: Arguments, name: str) -> Any:
    """Return the last value given for ``name``, unvalidated; else its default."""
    option = options_of(ReadmeTree).get(name)
    raw = next((item.raw for item in reversed(arguments.given) if item.name == name), None)
    if option is None:
        return raw
    return option.default if raw is None else value_of(option, raw)


def _translated(arguments: Arguments) -> Iterator[Given]:
    """Yield the options with the README's other words for them in place."""
    by_name = {item.name: item for item in arguments.given}
    for item in arguments.given:
        raw = item.raw if isinstance(item.raw, str) else ""
        if item.name == "log" and raw.lower() in _REFUSED_LOGS:
            allowed = f"True or False; {_MLFLOW}"
            arguments.problems.append(Problem("log", repr(raw), allowed))
        elif item.name == "distributed_backend" and raw == "dp":
            allowed = "ddp (which the README recommends)"
            arguments.problems.append(Problem("distributed_backend", "'dp'", allowed))
        elif item.name == "target_name":
            yield Given("target_names", "drums" if raw == "drum" else raw)
            if "target_names" in by_name:
                reason = "allowed only without target_names"
                arguments.problems.append(Problem("target_name", reason=reason))
        elif item.name == "one_hot_mode" and raw in ("True", "true", "1"):
            yield item
            yield Given("control_vector_type", "one_hot_mode")
            other = by_name.get("control_vector_type")
            if other is not None and other.raw != "one_hot_mode":
                reason = f"but control_vector_type is {other.raw}; give one"
                arguments.problems.append(Problem("one_hot_mode", "True", reason=reason))
        else:
            yield item


def _training(arguments: Arguments, now: datetime) -> ReadmeCommand:
    builder = _builder(arguments)
    tree = builder.build(ReadmeTree)
    explicit = explicit_names(arguments.given)
    config = RunConfig()
    if tree is not None:
        config = _training_config(tree, _word(arguments, VARIANT), now)
        bring(config, JOBS["main"])
        builder.note(needs_songs_and_start(config))
        builder.note(idle_options(config, explicit, "main", JOBS["main"]))
        reason = "has no effect with mode train; leave it out"
        for name in sorted(explicit):
            if builder.options[name].section == "evaluate" or name == "epoch":
                builder.note([Problem(name, reason=reason, others=("mode",))])
        if not config.data.filed_mode and config.data.shards_dir is not None:
            reason = "allowed only with filed_mode True, which keeps the shards"
            builder.note([Problem("shards_dir", reason=reason, others=("filed_mode",))])
    refuse(builder.problems)
    again = "the same command"
    if tree is not None and tree.tracking.run_id is None:
        again += f" with --run_id {config.tracking.run_id}"
    return ReadmeCommand("main", config, "json" in arguments.flags, again=again, mode="train")


def _builder(arguments: Arguments, stored: RunConfig | None = None) -> Builder:
    builder = Builder(options_of(ReadmeTree))
    if stored is not None:
        found = {name: option.value_in(stored) for name, option in all_options().items()}
        builder.add_values(found)
    builder.add_presets(arguments.all_of("preset"))
    builder.note(arguments.problems)
    builder.add(arguments.given)
    return builder


def _training_config(tree: ReadmeTree, variant: Any, now: datetime) -> RunConfig:
    """Return the run's configuration: folder by model and run_id, shards shared by its equals."""
    run_id = tree.tracking.run_id or now.strftime("%Y%m%d_%H%M%S")
    root = tree.readme.ckpt_root_path.absolute()
    model = variant if isinstance(variant, str) else variant_name(tree.model)
    output_dir = root / model / run_id
    shards = tree.data.shards_dir
    if shards is None and tree.data.filed_mode:
        shards = root / "shards" / _shards_name(tree)
    start = tree.train.resume_from_checkpoint
    if start is not None and not start.exists():
        start = output_dir / "checkpoints" / start.name
    return RunConfig(
        output_dir=output_dir,
        model=tree.model,
        data=tree.data.model_copy(update={"shards_dir": shards}),
        train=tree.train.model_copy(update={"resume_from_checkpoint": start}),
        evaluate=tree.evaluate,
        tracking=tree.tracking.model_copy(update={"run_id": run_id}),
        cluster=tree.cluster,
    )


def _shards_name(tree: ReadmeTree) -> str:
    """Return a folder name that is the same for runs on the same songs and spectrograms."""
    model, data = tree.model, tree.data
    names = {name for name in type(data).model_fields if name.startswith("synthetic_")}
    if data.musdb_root is not None:
        names = {"musdb_root"}
    songs = data.model_dump_json(
        include=names | {"musdb_is_wav", "dev_mode", "max_frames_per_shard"}
    )
    spectrogram = (model.sources, model.sample_rate, model.audio_channels)
    short = hashlib.sha256(f"{songs}{spectrogram}".encode()).hexdigest()[:8]
    root = RunFolder.of(RunConfig(data=data)).songs.name
    return f"{root}-{model.n_fft}-{model.hop_length}-{short}"


def _evaluation(arguments: Arguments) -> ReadmeCommand:
    try:
        folder = _run_folder(arguments)
    except ConfigError as error:
        # Without the run there is nothing to compare with, but other problems can be told.
        builder = _builder(arguments)
        builder.build(ReadmeTree)
        builder.note(error.problems)
        raise ConfigError(builder.problems) from error
    refuse(misplaced(RunConfig(output_dir=folder)))
    path = RunFolder.of(RunConfig(output_dir=folder)).config
    stored = from_json(path.read_bytes(), origin=str(path))
    builder = _builder(arguments, stored)
    tree = builder.build(ReadmeTree)
    config = stored if tree is None else _evaluation_config(builder, tree, stored, folder)
    if tree is not None:
        bring(config, JOBS["main"])
        builder.note(_contradictions(tree, stored))
        builder.note(needs_estimates(config))
    refuse(builder.problems)
    return ReadmeCommand("main", config, "json" in arguments.flags, mode="eval")


def _run_folder(arguments: Arguments) -> Path:
    words, known = Builder(options_of(ReadmeTree)), {*ReadmeOptions.model_fields, "run_id"}
    words.add([item for item in arguments.given if item.name in known])
    tree = words.build(ReadmeTree)
    refuse(words.problems)
    assert tree is not None, "words that have no problem were refused"
    root = tree.readme.ckpt_root_path.absolute()
    return find_run(root, tree.tracking.run_id, _word(arguments, VARIANT))


def _evaluation_config(
    builder: Builder, tree: ReadmeTree, stored: RunConfig, folder: Path
) -> RunConfig:
    checkpoint = None
    if tree.readme.epoch is not None:
        checkpoints = RunFolder.of(RunConfig(output_dir=folder)).checkpoints
        try:
            checkpoint = kept_epoch(checkpoints, tree.readme.epoch)
        except ConfigError as error:
            builder.note(error.problems)
    return RunConfig(
        output_dir=folder,
        model=stored.model,
        data=tree.data,
        train=stored.train,
        evaluate=tree.evaluate.model_copy(update={"checkpoint": checkpoint}),
        tracking=tree.tracking,
        cluster=tree.cluster,
    )


def _contradictions(tree: ReadmeTree, stored: RunConfig) -> Iterator[Problem]:
    for section in ("model", "train"):
        asked, trained = getattr(tree, section), getattr(stored, section)
        for name in type(trained).model_fields:
            ours, theirs = getattr(asked, name), getattr(trained, name)
            if ours != theirs:
                reason = f"but the run was trained with {theirs}; leave it out"
                yield Problem(name, str(ours), reason=reason)


def find_run(root: Path, run_id: str | None, model: str | None) -> Path:
    """Return the folder ``root/<model>/<run_id>``; the model's name may be left out.

    Raises:
        ConfigError: there is no such run, or more than one.
    """
    runs = sorted(path.parent for path in root.glob("*/*/config.json"))
    shown = ", ".join(f"{path.parent.name}/{path.name}" for path in runs) or "none yet"
    if run_id is None:
        reason = f"needed with mode eval; the runs in {root}: {shown}"
        raise ConfigError(Problem("run_id", reason=reason))
    found = [path for path in runs if path.name == run_id and model in (None, path.parent.name)]
    if len(found) > 1:
        names = ", ".join(path.parent.name for path in found)
        reason = f"needed, because several have a run {run_id}: {names}"
        raise ConfigError(Problem(VARIANT, reason=reason))
    if not found:
        of_model = f" of {model}" if model else ""
        reason = f"no run {run_id}{of_model} in {root}, which has: {shown}"
        raise ConfigError(Problem("run_id", reason=reason, others=(VARIANT,)))
    return found[0]


def kept_epoch(checkpoints: Path, epoch: str) -> Path:
    """Return the checkpoint of a kept epoch, named as ``7``, ``epoch=7`` or ``epoch=7.ckpt``.

    Raises:
        ConfigError: it was not kept.
    """
    match = re.fullmatch(r"(?:epoch=)?([0-9]{1,9})(?:\.ckpt)?", epoch)
    kept = {int(path.name[6:]): path for path in checkpoints.glob("epoch=[0-9]*")}
    if match is None or int(match[1]) not in kept:
        names = ", ".join(path.name for _, path in sorted(kept.items()))
        raise ConfigError(
            Problem("epoch", repr(epoch), f"one that was kept ({names or 'none was'})")
        )
    return kept[int(match[1])]
