"""One process of a training, from the configuration to the result; alone it needs no Ray."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lasaft.checkpoint import load_checkpoint
from lasaft.errors import CheckpointError, StageError
from lasaft.model import LaSAFT
from pipeline.config import RunConfig
from pipeline.folders import RunFolder
from pipeline.loader import BatchLoader, ValidationTrack, validation_tracks
from pipeline.manifest import read_manifest
from pipeline.sampler import draw_plan, steps_per_epoch
from pipeline.shard_reader import ShardSet
from pipeline.training.identity import finish
from pipeline.training.provenance import provenance
from pipeline.training.randomness import seed_weights
from pipeline.training.ranks import Ranks
from pipeline.training.result import TrainResult
from pipeline.training.state import state_file
from pipeline.training.sync_batchnorm import synchronise_batchnorm
from pipeline.training.trainer import Trainer

# Ray ends the workers of a killed driver within some 5 seconds.
_PREDECESSOR_SECONDS = 60.0

OnEpoch = Callable[[int, dict[str, float]], None]


def ignore_epoch(epoch: int, values: dict[str, float]) -> None:
    """Do nothing after an epoch."""


class ShardData:
    """The windows and tracks of one process, from a shard folder.

    Args:
        shards: the open folder.
        config: what is drawn, and how it is read.
        ranks: the processes that share each batch and the tracks.
    """

    def __init__(self, shards: ShardSet, config: RunConfig, ranks: Ranks) -> None:
        self._shards, self._config, self._ranks = shards, config, ranks
        self.steps_per_epoch = steps_per_epoch(shards.manifest, config)

    @contextmanager
    def batches(self, epoch: int, first: int) -> Iterator[BatchLoader]:
        """Yield the batches of ``epoch`` from number ``first`` on."""
        train, ranks = self._config.train, self._ranks
        plan = draw_plan(self._shards.manifest, self._config, epoch)
        with BatchLoader(
            self._shards,
            plan,
            rank=ranks.rank,
            world_size=ranks.world,
            start_step=first,
            threads=train.num_workers,
            pin_memory=train.pin_memory and ranks.device.type == "cuda",
        ) as loader:
            yield loader

    def validation_tracks(self) -> Iterator[tuple[int, ValidationTrack]]:
        """Yield this process's share of the validation tracks."""
        return validation_tracks(self._shards, rank=self._ranks.rank, world_size=self._ranks.world)


def new_model(config: RunConfig, device: torch.device) -> LaSAFT:
    """Return the network with its first weights: from the seed, or from a checkpoint.

    Raises:
        CheckpointError: ``resume_from_checkpoint`` holds another network.
    """
    seed_weights(config.train.seed)
    model = LaSAFT(config.model)
    start = config.train.resume_from_checkpoint
    if start is not None:
        checkpoint = load_checkpoint(start)
        if checkpoint.config != config.model:
            mine, other = config.model.model_dump(), checkpoint.config.model_dump()
            names = [f"{name} {other[name]!r}" for name in mine if mine[name] != other[name]]
            raise CheckpointError(
                f"resume_from_checkpoint {start}: its network is another one: it has "
                + ", ".join(names)
            )
        model.load_state_dict(checkpoint.state_dict)
    model = model.to(device)
    if config.train.synchronised and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif config.train.synchronised:
        synchronise_batchnorm(model)
    return model


def run_session(
    config: RunConfig, device: torch.device, on_epoch: OnEpoch = ignore_epoch
) -> TrainResult:
    """Train as one of the processes of torch's process group, or alone if there is none.

    The shards, state and models lie where ``config`` says; what was saved there is gone on from.

    Args:
        config: the run's settings.
        device: where this process computes.
        on_epoch: called on every process after each epoch with its number and values.

    Raises:
        CheckpointError, ConfigError, DataError, StageError: see the message.
    """
    folder, ranks = RunFolder.of(config), Ranks.current(device)
    with _only_writer(folder, ranks):
        result = _run(config, folder, ranks, on_epoch)
        if ranks.is_first:
            finish(folder, config, result)
            if config.train.save_weights_only:
                state_file(folder).unlink(missing_ok=True)
    return result


def _run(config: RunConfig, folder: RunFolder, ranks: Ranks, on_epoch: OnEpoch) -> TrainResult:
    manifest = read_manifest(folder.shards)
    manifest.require_model(config.model)
    model = new_model(config, ranks.device)
    data = ShardData(ShardSet(folder.shards, manifest), config, ranks)
    record = provenance(config, manifest.hash)
    trainer = Trainer(config, model, data, folder, ranks, provenance=record, on_epoch=on_epoch)
    return trainer.run()


@contextmanager
def _only_writer(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """Wait until no process of an earlier, killed attempt writes to the folder any more.

    Raises:
        StageError: one goes on writing.
    """
    if not ranks.is_first:
        ranks.agree(None)
        yield
        return
    folder.training.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + _PREDECESSOR_SECONDS
    with (folder.training / "writer.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise StageError(
                        f"output_dir {folder.root}: a process of another training still writes "
                        "there; wait for its end, or choose another output_dir"
                    ) from None
                time.sleep(0.1)
        ranks.agree(None)  # the others may read the state from now on
        yield
