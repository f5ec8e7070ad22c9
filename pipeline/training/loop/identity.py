"""Whether a training folder belongs to this configuration: what may change on a resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lasaft.errors import ConfigError, Problem, StageError, refuse
from lasaft.files import atomic_write_json, read_json, read_steadily
from pipeline.config import RunConfig
from pipeline.config.fingerprints import digest
from pipeline.config.folders import RunFolder
from pipeline.config.roles import RESUME, changes, identity, values
from pipeline.training.loop.records import TrainResult
from pipeline.training.loop.states import newest_state

DATA_HASH = "data hash"
_IDENTITY = "identity.json"
_RESULT = "result.json"
_SEAL = "sha256"  # of all else in the result; earlier versions wrote none


def claim(folder: RunFolder, config: RunConfig, data_hash: str) -> None:
    """Make the training folder this configuration's, or find that it is.

    Where nothing has been trained yet, the folder is free for another configuration. A checkpoint
    that training began with may be left out when it goes on.

    Raises:
        ConfigError: it is another's; one line for each option that differs.
        StageError: what the folder says of itself is damaged.
    """
    if not has_begun(folder):
        (folder.training / _IDENTITY).unlink(missing_ok=True)
    mine = identity(config) | {DATA_HASH: data_hash}
    claim_folder(folder.training, config, mine, "training", may_lack=RESUME)


def began_with(folder: RunFolder) -> Any:
    """Return the ``resume_from_checkpoint`` of the training in ``folder``; None if it had none."""
    try:
        return json.loads(read_steadily(folder.training / _IDENTITY)).get(f"train.{RESUME}")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # what is damaged is told when the folder is claimed


def has_begun(folder: RunFolder) -> bool:
    """Return whether there is a state to go on from, or a result."""
    return newest_state(folder) is not None or (folder.training / _RESULT).exists()


def claim_folder(
    root: Path, config: RunConfig, mine: dict[str, Any], what: str, may_lack: str = ""
) -> None:
    """Make a folder that of the ``what`` with this identity, or find that it is.

    Args:
        what: what is done in the folder, for messages.
        may_lack: an option that may be None here, whatever the folder has.

    Raises:
        ConfigError: it is another's; one line for each option that differs.
        StageError: what the folder says of itself is damaged.
    """
    file = root / _IDENTITY
    if not file.exists():
        atomic_write_json(file, mine)
        return
    advice = "remove it, and give the options of before: they are not compared then"
    problems: list[Problem] = []
    for one in changes(read_json(file, set(), advice), mine, config):
        if one.name == may_lack and one.now is None:
            continue
        allowed = f"that value, {'none, ' if one.name == may_lack else ''}or another output_dir"
        reason = f"but the {what} in {root} has {one.before!r}"
        problems.append(Problem(one.name, repr(one.now), allowed, reason=reason))
    refuse(problems)


def finished(folder: RunFolder, config: RunConfig) -> TrainResult | None:
    """Return the result of a training that has nothing left to do, None if it has to go on.

    Raises:
        ConfigError: it should go on to a later epoch, and its state was dropped at the end.
        StageError: the result is damaged.
    """
    file = folder.training / _RESULT
    if not file.exists():
        return None
    advice = "remove it: training goes on from its saved state"
    resumable = newest_state(folder) is not None
    if not resumable:
        advice = (
            "the training has ended and dropped its state (save_weights_only): "
            f"{folder.checkpoint} holds its model; to train again, give another output_dir"
        )
    saved = read_json(file, {"result", "stopping"}, advice)
    if saved.pop(_SEAL, None) not in (None, digest(saved)):
        raise StageError(f"{file}: is damaged (it was changed after it was written); {advice}")
    stopping, result = values(config, "train", "ending"), TrainResult.from_json(saved["result"])
    # An option that the program has learnt since had its default.
    saved["stopping"] = values(RunConfig(), "train", "ending") | saved["stopping"]
    # The folder may have been moved since.
    result = replace(result, checkpoint=folder.checkpoint)
    limit = config.train.time_limit_hours
    has_time = limit is None or 3600 * limit > result.seconds
    if saved["stopping"] == stopping and not (result.timed_out and has_time):
        return result
    if not resumable:
        raise ConfigError(
            f"save_weights_only: the training in {folder.training} has ended and dropped its "
            f"state, so it cannot go on with {stopping} instead of {saved['stopping']}; allowed: "
            "those values, or another output_dir"
        )
    return None


def finish(
    folder: RunFolder, config: RunConfig, result: TrainResult, hashes: Mapping[str, str]
) -> None:
    """Record that training has ended with ``result``, and the hashes of what it has made."""
    record = {"stopping": values(config, "train", "ending"), "result": result.to_json()}
    record["hashes"] = dict(hashes)
    atomic_write_json(folder.training / _RESULT, record | {_SEAL: digest(record)})


def hashes_of(folder: RunFolder) -> dict[str, str]:
    """Return the hashes of what a finished training has made, as :func:`finish` took them."""
    return read_json(folder.training / _RESULT, set(), "remove it").get("hashes", {})


def data_hash_of(folder: RunFolder) -> str:
    """Return the hash of the shards that the training in ``folder`` is on."""
    return read_json(folder.training / _IDENTITY, {DATA_HASH}, "remove it")[DATA_HASH]
