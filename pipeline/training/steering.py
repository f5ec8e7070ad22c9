"""The process that steers those that train: Ray Train around the loop."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lasaft.errors import LasaftError, StageError
from pipeline.cluster.memory import out_of_memory
from pipeline.cluster.run_store import RunStore
from pipeline.cluster.shared_storage import require_seen
from pipeline.cluster.store import note_written, written_lately
from pipeline.config import from_json
from pipeline.config.folders import RunFolder

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def run_workers(known: dict[str, Any], scaling: dict[str, Any], reports: Any) -> list[str]:
    """Start the processes that train, again where one dies, and return at their end.

    Args:
        known: ``config`` (JSON), ``folders`` (what their nodes must see), and ``written`` (what
            has been written to stores lately), ``validator`` (what holds who validates beside).
        scaling: how many there are and what each holds, as Ray's ScalingConfig takes it.
        reports: the queue for what they report.

    Returns:
        What the first process has written to stores lately.
    """
    from ray import train as ray_train
    from ray.exceptions import RayActorError
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from pipeline.training.meeting import OwnMeeting
    from pipeline.training.reports import Listener
    from pipeline.training.validator import start_validator

    config = from_json(known["config"])
    folder, most = RunFolder.of(config), config.train.max_failures
    storage_path, storage_filesystem = ray_storage(folder)
    threads = _thread_settings(scaling["resources_per_worker"]["CPU"])
    validator = None
    if config.train.validation == "beside":
        validator = start_validator(known, threads)  # before the others, which may take all places
    # What TorchTrainer adds is torch, in processes that only steer: seconds of every start.
    trainer = DataParallelTrainer(
        _process,
        train_loop_config=known | {"validator": validator},
        backend_config=OwnMeeting(),
        scaling_config=ray_train.ScalingConfig(**scaling),
        run_config=ray_train.RunConfig(
            name=f"{datetime.now():%Y-%m-%d_%H-%M-%S.%f}",
            storage_path=storage_path,
            storage_filesystem=storage_filesystem,
            failure_config=ray_train.FailureConfig(max_failures=most),
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=1),
            logging_config=ray_train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": threads},
            callbacks=[Listener(reports)],
        ),
    )
    try:
        return trainer.fit().return_value or []
    except RayActorError as error:
        # The actor that steers the processes is none of those that Ray starts again.
        raise steering_lost(folder, error) from error
    except ray_train.ControllerError as error:
        if isinstance(error.controller_failure, LasaftError):
            raise error.controller_failure from error
        raise steering_lost(folder, error) from error
    except ray_train.TrainingFailedError as error:
        raise StageError(
            f"training: the processes died more than {most} times, the last time of: "
            f"{in_short(error)}; the state in {folder.training} is kept: the same command goes on"
        ) from error


def steering_lost(folder: RunFolder, error: Exception) -> StageError:
    """Return the error that says so, where the process died that steers the others."""
    reason = in_short(error).partition(". ")[0]
    return StageError(
        f"training: the process that steers the others died ({reason}); the state in "
        f"{folder.training} is kept: the same command goes on"
    )


def ray_storage(folder: RunFolder) -> tuple[str, FileSystem | None]:
    """Return where Ray Train keeps what is its own, and the file system of it if it is no disk."""
    from pipeline.cluster.patient_files import patient_place

    remote = RunStore(folder).remote
    if remote is None:
        return str(folder.ray_train), None
    system, path = patient_place(remote, str(folder.ray_train.relative_to(folder.root)))
    return path, system


def _thread_settings(cpus: float) -> dict[str, str]:
    """Return the environment that lets torch use all the CPUs of its process, and no more.

    Threads that wait for each other spin for some microseconds only, then sleep: where other work
    runs on the same cores, long spinning made a small network's validation take 20 s instead of
    0.2 s, and sleeping at once costs 5 to 15% on idle cores.
    """
    threads = max(1, math.floor(cpus))
    return {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "10000"}


def _process(payload: dict[str, Any]) -> list[str]:
    """Train in one Ray worker; return what it has written to stores lately."""
    from ray.train.torch import get_device

    from pipeline.training.loop.worker import run_session
    from pipeline.training.meeting import met
    from pipeline.training.reports import RayOutlet

    require_seen(payload["folders"])
    note_written(payload["written"])
    config = from_json(payload["config"])
    device = get_device()
    assert not isinstance(device, list)
    with met(device) as ranks:
        if not config.train.gpus:
            # Of a range, this many have been started: from here on it is a number like any other.
            train = config.train.model_copy(update={"world_size": ranks.world})
            config = config.model_copy(update={"train": train})
        validator = payload["validator"]
        outlet = RayOutlet(RunFolder.of(config), is_first=ranks.is_first, validator=validator)
        run_session(config, device, outlet=outlet)
    return written_lately()


def in_short(error: BaseException) -> str:
    """Return what processes died of, in one line."""
    if lack := out_of_memory(error):
        return f"{lack}; less is taken with a smaller batch_size or fewer num_workers"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
