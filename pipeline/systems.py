"""Which systems an evaluation scores: the one of interest, and the bounds around it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from lasaft.checkpoint import Checkpoint
from lasaft.config import variant_name
from lasaft.errors import ConfigError, DataError
from pipeline.config import RunConfig
from pipeline.excerpts import EXCERPTS, REFERENCE_FOLDER
from pipeline.folders import RunFolder
from pipeline.score_files import file_names
from pipeline.score_track import SystemJob
from pipeline.summary import Kind, System
from pipeline.tracks import Track

_RESERVED = ("mixture", "irm", "ibm", EXCERPTS, REFERENCE_FOLDER)


def systems_of(config: RunConfig, checkpoint: Checkpoint | None) -> list[SystemJob]:
    """Return the system of interest, then the bounds.

    Raises:
        ConfigError: its name is that of a bound.
        DataError: ``estimates_dir`` has no folder of the split.
    """
    options = config.evaluate
    name = config.tracking.run_id
    if checkpoint is not None:
        name = name or variant_name(checkpoint.config)
        place = (options.checkpoint or RunFolder.of(config).checkpoint).absolute()
        key = {"checkpoint": checkpoint.hash, "overlap_ratio": options.overlap_ratio}
        lead = SystemJob(name, file_names([name])[name], "model", place, key)
    else:
        assert options.estimates_dir is not None
        place = options.estimates_dir.absolute() / options.split
        if not place.is_dir():
            raise DataError(
                f"estimates_dir {options.estimates_dir}: no folder {options.split} in it; allowed: "
                f"{options.split}/<track>/<source>.wav"
            )
        name = name or options.estimates_dir.absolute().name
        lead = SystemJob(name, file_names([name])[name], "estimates", place, {})
    if lead.file.casefold() in _RESERVED:
        raise ConfigError(
            f"run_id: got {name!r}, which names something else here; allowed: any name but "
            f"{', '.join(_RESERVED)}"
        )
    bounds: list[Kind] = ["mixture", "irm", "ibm"] if options.oracles else ["mixture"]
    return [lead, *(SystemJob(bound, bound, bound, None, {"bound": bound}) for bound in bounds)]


def for_track(system: SystemJob, track: Track) -> SystemJob:
    """Return ``system`` with the content of its estimates of ``track`` in its key."""
    if system.kind != "estimates":
        return system
    assert system.place is not None
    digest = hashlib.sha256()
    for file in sorted((system.place / track.name).glob("*.*")):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n"
                          .encode())  # fmt: skip
    return replace(system, key={"estimates": digest.hexdigest()})


def identity_of(system: SystemJob, checkpoint: Checkpoint | None) -> System:
    """Return what a summary says about ``system``."""
    if system.kind != "model" or checkpoint is None:
        return System(kind=system.kind)
    record = checkpoint.provenance
    kept = {name: record[name] for name in ("git_commit", "epoch", "step") if name in record}
    kept |= {"training_data_hash": record["data_hash"]} if "data_hash" in record else {}
    training = record.get("config", {}).get("train", {})
    kept |= {"seed": training["seed"]} if "seed" in training else {}
    kept |= {f"{name} version": text for name, text in record.get("packages", {}).items()}
    return System(
        kind="model",
        checkpoint=checkpoint.hash,
        variant=variant_name(checkpoint.config),
        provenance=kept,
        settings={"overlap_ratio": system.key["overlap_ratio"]},
    )
