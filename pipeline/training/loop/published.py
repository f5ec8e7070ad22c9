"""What a finished training has published: known by its hashes, and mended where it is damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from lasaft.card import bare, card_of, stated
from lasaft.checkpoint import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    checkpoint_hash,
    load_checkpoint,
    save_tensors,
)
from lasaft.errors import CheckpointError, StageError
from lasaft.files import (
    atomic_path,
    atomic_write_json,
    file_sha256,
    json_bytes,
    read_steadily,
    recover_folder,
)
from pipeline.cluster.progress import say
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.checkpoints import epoch_folder
from pipeline.training.loop.identity import data_hash_of, finish, hashes_of
from pipeline.training.loop.journal import read_history
from pipeline.training.loop.records import TrainResult, provenance
from pipeline.training.loop.state_file import load_state
from pipeline.training.loop.states import newest_state

_AGAIN = (
    "put a copy of it back, or train again: with --rerun train of jobs.run, or in another "
    "output_dir"
)


def seal(folder: RunFolder, config: RunConfig, result: TrainResult) -> dict[str, str]:
    """Return the hashes of what a training that has just ended leaves, for :func:`verify`."""
    digest = _mend(folder, config, result, {})
    files = {"record": folder.checkpoint / CONFIG, "journal": folder.metrics}
    return {"checkpoint": digest} | {name: file_sha256(file) for name, file in files.items()}


def verify(folder: RunFolder, config: RunConfig, result: TrainResult) -> None:
    """Make sure that a finished training's checkpoint and journal are what it has made.

    A damaged checkpoint is published again, from its twin among those of the epochs or from the
    saved state.

    Raises:
        StageError: something has changed and cannot be mended; says what to do.
    """
    known = hashes_of(folder)  # earlier versions wrote none
    _mend(folder, config, result, known)
    journal = file_sha256(folder.metrics) if folder.metrics.is_file() else "none"
    if known.get("journal", journal) != journal:
        raise StageError(
            f"{folder.metrics}: is not as the training has left it, and nothing else holds its "
            f"records; {_AGAIN}"
        )
    file = folder.checkpoint / CONFIG
    if known and _record(file, known) is None:
        record = file_sha256(file)
        finish(folder, config, result, known | {"record": record})  # it had to be made anew


def _mend(
    folder: RunFolder, config: RunConfig, result: TrainResult, known: Mapping[str, str]
) -> str:
    """Return the hash of the best epoch's checkpoint, once both copies of it are whole."""
    places = (folder.checkpoint, epoch_folder(folder, result.best_epoch))
    for place in places:
        recover_folder(place)
    sound = {place: weights for place in places if (weights := _read(place, result, known))}
    records = [found for place in sound or places if (found := _record(place / CONFIG, known))]
    sources = sound
    if not sound:
        sources = _saved_weights(folder)
        records.append(_new_record(folder, config, result, known.get("checkpoint")))
    for source, weights in sources.items():
        for record in records:
            digest = checkpoint_hash(weights, record["model"])
            if not digest == record.get("hash", digest) == known.get("checkpoint", digest):
                continue
            for place in places:
                if place not in sound:
                    _publish(place, weights, record, source)
            return digest
    raise StageError(
        f"{places[0]}: is damaged, and so is {places[1]}; the saved state is of another epoch, or "
        f"damaged too; {_AGAIN}"
    )


def _read(place: Path, result: TrainResult, known: Mapping[str, str]) -> dict[str, Tensor] | None:
    """Return the weights of a checkpoint, None where it is damaged.

    Raises:
        StageError: it is a whole one, but another.
    """
    try:
        found = load_checkpoint(place)
    except CheckpointError:
        return None
    other = found.hash != known.get("checkpoint", found.hash)
    if not other and _record(place / CONFIG, known) is None:
        return None
    if other or found.provenance.get("epoch") != result.best_epoch:
        raise StageError(
            f"{place}: holds another checkpoint than the training has made there; move it "
            "elsewhere: the same command publishes its own again"
        )
    return found.state_dict


def _record(file: Path, known: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what stands beside a checkpoint's weights, None where it is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_steadily(file))
        whole = isinstance(found, dict) and isinstance(found.get("model"), dict)
        if whole and known.get("record") in (None, file_sha256(file), _bare_sha256(found)):
            return found
    return None


def _bare_sha256(record: dict[str, Any]) -> str:
    """Return the hash of a record's file, as it was before somebody stated a licence."""
    return hashlib.sha256(json_bytes(bare(record))).hexdigest()


def state_licences(folder: RunFolder, config: RunConfig) -> None:
    """Put the licences that are given now on the card of a checkpoint that is finished."""
    file = folder.checkpoint / CONFIG
    found = json.loads(read_steadily(file))
    card = card_of(found["provenance"], found["hash"])
    said = stated(found, config.tracking)
    if card != card_of(said["provenance"], found["hash"]):
        atomic_write_json(file, said)


def _saved_weights(folder: RunFolder) -> dict[Path, dict[str, Tensor]]:
    """Return the network of the saved state, by the state's file; nothing where it is damaged."""
    file = newest_state(folder)
    with suppress(CheckpointError):
        state = None if file is None else load_state(file)
        if file is not None and state is not None:
            return {file: state.part("average") or state.part("model")}
    return {}


def _new_record(
    folder: RunFolder, config: RunConfig, result: TrainResult, known: str | None
) -> dict[str, Any]:
    """Return the record of the checkpoint ``known``, as far as it can be known again."""
    epochs = [one for one in read_history(folder.metrics) if one["kind"] == "epoch"]
    best = next((one for one in epochs if one["epoch"] == result.best_epoch), None)
    of_epoch = {"epoch": result.best_epoch} | (
        {}
        if best is None
        else {n: best[n] for n in ("step", "seconds")} | {"metrics": best["values"]}
    )
    made = provenance(config, data_hash_of(folder)) | of_epoch
    settings = config.model.model_dump(mode="json")
    return {"format": FORMAT, "hash": known, "model": settings, "provenance": made}


def _publish(place: Path, weights: dict[str, Tensor], record: dict[str, Any], source: Path) -> None:
    say(f"training: {place} is damaged; it is published again from {source}")
    with atomic_path(place / WEIGHTS) as temporary:
        save_tensors(weights, temporary)
    atomic_write_json(place / CONFIG, record)
