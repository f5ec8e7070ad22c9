"""Which systems an evaluation scores: the one of interest, and the bounds around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lasaft.card import card_of
from lasaft.checkpoint import Checkpoint
from lasaft.config import variant_name
from lasaft.errors import ConfigError, DataError, StageError
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.config.roles import recipe_of
from pipeline.data.songs.tracks import Track
from pipeline.evaluation.excerpts import EXCERPTS, REFERENCE_FOLDER
from pipeline.evaluation.program import Program
from pipeline.evaluation.score_files import file_names, read_key
from pipeline.evaluation.score_track import SystemJob
from pipeline.evaluation.summary import Kind, System

_RESERVED = ("mixture", "irm", "ibm", EXCERPTS, REFERENCE_FOLDER)


def systems_of(config: RunConfig, checkpoint: Checkpoint | None) -> list[SystemJob]:
    """Return the system of interest, then the bounds.

    Raises:
        ConfigError: its name is that of a bound, or of another system that is scored already.
        DataError: ``estimates_dir`` has no folder of the split.
    """
    options = config.evaluate
    name = config.tracking.run_id
    if checkpoint is not None:
        name = name or variant_name(checkpoint.config)
        place = RunFolder.of(config).evaluated.absolute()
        key = {"checkpoint": checkpoint.hash, "overlap_ratio": options.overlap_ratio}
        lead = SystemJob(name, file_names([name])[name], "model", place, key)
    elif (command := options.separator) is not None:
        program = Program(command, options.separator_minutes, config.cluster.task_memory * 1e9)
        name, key = name or program.name, {"separator": command}
        lead = SystemJob(name, file_names([name])[name], "estimates", None, key, program)
    else:
        given = RunFolder.of(config).given["estimates_dir"]
        place = given / options.split
        if not place.is_dir():
            raise DataError(
                f"estimates_dir {given}: no folder {options.split} in it; allowed: "
                f"{options.split}/<track>/<source>.wav"
            )
        name = name or given.name
        lead = SystemJob(name, file_names([name])[name], "estimates", place, {})
    require_free_name(config, lead)
    bounds: list[Kind] = ["mixture", "irm", "ibm"] if options.oracles else ["mixture"]
    return [lead, *(SystemJob(bound, bound, bound, None, {"bound": bound}) for bound in bounds)]


def require_free_name(config: RunConfig, lead: SystemJob) -> None:
    """Refuse a name under which the scores of another system lie, or which means something else.

    Scores of the run's own checkpoint are replaced when it was trained again; a checkpoint, a
    folder of estimates or of scores that is named on the command line never replaces another's.

    Raises:
        ConfigError: names what is there.
    """
    if lead.file.casefold() in _RESERVED:
        raise ConfigError(
            f"run_id: got {lead.name!r}, which names something else here; allowed: any name but "
            f"{', '.join(_RESERVED)}"
        )
    folder = RunFolder.of(config).scores / lead.file
    owner = _owner(folder)
    if owner is None or owner == _identity(lead.kind, lead.key):
        return
    kinds = {text.split()[0] for text in (owner, _identity(lead.kind, lead.key))}
    named = config.evaluate.checkpoint if lead.kind == "model" else config.evaluate.separator
    if len(kinds) > 1 or named is not None:
        raise ConfigError(
            f"run_id: {lead.name!r} is the name of {owner}, whose scores lie in {folder}; "
            f"allowed: another name for this one ({_identity(lead.kind, lead.key)})"
        )


def _owner(folder: Path) -> str | None:
    """Return what the scores in a folder are of, from the first key beside them."""
    for file in sorted(folder.glob("keys/*/*.json")):
        try:
            key = read_key(file)["key"]
        except StageError:
            continue  # a damaged key keeps nothing: its track is scored again
        kinds = {"checkpoint": "model", "separator": "estimates", "estimates": "estimates",
                 "scores": "scores"}  # fmt: skip
        return next((_identity(kind, key) for name, kind in kinds.items() if name in key), None)
    return None


def _identity(kind: str, key: Mapping[str, Any]) -> str:
    """Return what a system is in a few words, the first of which is its kind."""
    if kind == "model":
        return f"checkpoint {key['checkpoint'][:12]}"
    if "separator" in key:
        return f"program {key['separator']!r}"
    return "estimates" if kind == "estimates" else "scores of another system"


def require_known_folders(system: SystemJob, tracks: Sequence[Track]) -> None:
    """Refuse estimates that miss a track or have a folder that names none, before any work.

    Raises:
        DataError: names the folders.
    """
    if system.kind != "estimates" or system.place is None:
        return
    names = {track.name for track in tracks}
    there = {path.name for path in system.place.iterdir() if path.is_dir()}
    missing, unknown = sorted(names - there), sorted(there - names)
    if missing:
        hint = f"; folders that name no track: {', '.join(unknown[:5])}" if unknown else ""
        raise DataError(
            f"{system.place}: no estimates of {', '.join(missing[:5])}"
            f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''} "
            f"({len(missing)} of {len(names)} tracks){hint}; allowed: a folder <track> for each"
        )


def identity_of(system: SystemJob, checkpoint: Checkpoint | None) -> System:
    """Return what a summary says about ``system``."""
    if system.kind != "model" or checkpoint is None:
        made = {name: text for name, text in system.key.items() if name == "separator"}
        return System(kind=system.kind, settings=made)
    record = checkpoint.provenance
    kept = {name: record[name] for name in ("git_commit", "epoch", "step") if name in record}
    kept |= {"card": card_of(record, checkpoint.hash)}
    kept |= {"training_data_hash": record["data_hash"]} if "data_hash" in record else {}
    config = record.get("config", {})
    training = config.get("train", {})
    kept |= {f"{name} version": text for name, text in record.get("packages", {}).items()}
    return System(
        kind="model",
        checkpoint=checkpoint.hash,
        variant=variant_name(checkpoint.config),
        recipe=recipe_of(record),
        seed=training.get("seed"),
        config={g: config[g] for g in ("model", "data", "train") if g in config} or None,
        provenance=kept,
        settings={"overlap_ratio": system.key["overlap_ratio"]},
    )
