"""One process of a training, from the configuration to the result; alone it needs no Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from lasaft.checkpoint import require_replaceable
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.windows.remote import open_shards
from pipeline.training.loop.first_weights import new_model
from pipeline.training.loop.identity import finish
from pipeline.training.loop.outlet import Outlet
from pipeline.training.loop.process_data import ShardData
from pipeline.training.loop.published import seal
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.records import TrainResult, provenance
from pipeline.training.loop.right_to_write import Right
from pipeline.training.loop.states import newest_state
from pipeline.training.loop.trainer import OnEpoch, Trainer


def run_session(
    config: RunConfig,
    device: torch.device,
    on_epoch: OnEpoch = lambda epoch, values: None,
    outlet: Outlet | None = None,
) -> TrainResult:
    """Train as one of the processes of torch's process group, or alone if there is none.

    The shards, state and models lie where ``config`` says; what was saved there is gone on from.

    Args:
        device: where this process computes.
        on_epoch: called on every process after each epoch with its number and values.
        outlet: where reports and states go; by default into the run's folder.

    Raises:
        CheckpointError, ConfigError, DataError, StageError: see the message.
    """
    folder, ranks = RunFolder.of(config), Ranks.current(device)
    outlet = outlet or Outlet(folder)
    with _only_writer(outlet.right, ranks):
        outlet.fetch()
        ranks.agree(None)  # before anything changes here, the others on this machine have it too
        result = _run(config, folder, ranks, on_epoch, outlet)
        if ranks.is_first:
            finish(folder, config, result, seal(folder, config, result))
            outlet.share()
            if config.train.save_weights_only and not result.timed_out:
                outlet.drop_states()
    return result


def _run(
    config: RunConfig, folder: RunFolder, ranks: Ranks, on_epoch: OnEpoch, outlet: Outlet
) -> TrainResult:
    with open_shards(config) as shards:
        shards.manifest.require_model(config.model)
        if newest_state(folder) is None:
            require_replaceable(folder.checkpoint)
        model = new_model(config, ranks.device)
        data = ShardData(shards, config, ranks)
        record = provenance(config, shards.manifest.hash)
        trainer = Trainer(
            config, model, data, folder, ranks,
            provenance=record, on_epoch=on_epoch, outlet=outlet,
        )  # fmt: skip
        return trainer.run()


@contextmanager
def _only_writer(right: Right, ranks: Ranks) -> Iterator[None]:
    """Let the first process take the right to write, while the others wait."""
    with right if ranks.is_first else nullcontext():
        ranks.agree(None)  # the others may read the state from now on
        yield
