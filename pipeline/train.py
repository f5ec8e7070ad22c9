"""Training on Ray: one process or many, started again when one dies, shown while it runs."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lasaft.errors
from lasaft.errors import LasaftError, StageError
from lasaft.files import atomic_write_json
from pipeline.cluster import connected, require_gpus
from pipeline.config import RunConfig, TrainConfig, from_json, to_json
from pipeline.folders import RunFolder
from pipeline.manifest import read_manifest
from pipeline.progress import Progress
from pipeline.training.identity import claim, finished
from pipeline.training.result import TrainResult

_POLL_SECONDS = 0.5
# A report waits some 0.3 s for Ray's controller, which only wants to know that all is well.
_REPORT_SECONDS = 10.0


def train(config: RunConfig) -> TrainResult:
    """Train the network of ``config`` on its shards, or go on where an earlier call was stopped.

    Args:
        config: the run's settings; the shards must be there.

    Returns:
        What came out; at once if this training was finished before.

    Raises:
        ConfigError: options that do not fit the shards, the cluster, or an earlier training in
            the same ``output_dir``.
        DataError: the shards are missing or damaged.
        StageError: training ended without a result; the saved state is kept.
    """
    folder = RunFolder.of(config)
    manifest = read_manifest(folder.shards)
    manifest.require_model(config.model)
    with _alone(folder):
        claim(folder, config, manifest.hash)
        result = finished(folder, config)
        if result is not None:
            return result
        for name in ("failure.json", "progress.json"):
            (folder.training / name).unlink(missing_ok=True)
        with connected(config.cluster), _shown(folder, config.train):
            _fit(config, folder)
        result = finished(folder, config)
    assert result is not None, "the workers ended without a result"
    return result


def _fit(config: RunConfig, folder: RunFolder) -> None:
    """Run the workers to the end."""
    from ray.train import (
        FailureConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer

    train = config.train
    cpus = _cpus_per_process(train)
    # Our own files are the truth: what Ray keeps of an earlier call would only be in the way.
    storage = folder.training / "ray"
    shutil.rmtree(storage, ignore_errors=True)

    class Trainer(TorchTrainer):
        """Leaves Ctrl-C to us: Ray's own handler ends the process as if all were well."""

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    trainer = Trainer(
        _process,
        train_loop_config={"config": to_json(config)},
        scaling_config=ScalingConfig(
            num_workers=train.processes,
            use_gpu=bool(train.gpus),
            resources_per_worker={"CPU": cpus} | ({"GPU": 1} if train.gpus else {}),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=train.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": _thread_settings(cpus)},
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        _raise_failure(folder)
        raise StageError(
            f"training: the processes died more than {train.max_failures} times, the last time of: "
            f"{_last_line(error)}; the state in {folder.training} is kept: the same command goes on"
        ) from error
    _raise_failure(folder)


def _thread_settings(cpus: float) -> dict[str, str]:
    """Return the environment that lets torch use all the CPUs of its process, and no more.

    Threads that wait for each other spin for some microseconds only, then sleep: where other work
    runs on the same cores, long spinning made a small network's validation take 20 s instead of
    0.2 s, and sleeping at once costs 5 to 15% on idle cores.
    """
    threads = max(1, math.floor(cpus))
    return {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "10000"}


def _process(payload: dict[str, Any]) -> None:
    """Train in one Ray worker."""
    import ray.train
    from ray.train.torch import get_device

    from pipeline.training.ranks import Ranks
    from pipeline.training.session import run_session

    config = from_json(payload["config"])
    failure = RunFolder.of(config).training / "failure.json"
    if failure.exists():
        # A process has found that going on makes no sense; all that are started again end here.
        return

    device = get_device()
    assert not isinstance(device, list)
    ranks, reported = Ranks.current(device), time.monotonic()

    def report(epoch: int, values: dict[str, float]) -> None:
        nonlocal reported
        if ranks.agree(time.monotonic() - reported > _REPORT_SECONDS):
            ray.train.report({"epoch": epoch} | values)
            reported = time.monotonic()

    try:
        run_session(config, device, report)
    except LasaftError as error:
        atomic_write_json(failure, {"kind": type(error).__name__, "text": str(error)})
        if config.train.processes > 1:
            raise  # the others may be waiting for this one in a sum


def _raise_failure(folder: RunFolder) -> None:
    """Raise what a worker has found to be wrong with the input, if anything."""
    file = folder.training / "failure.json"
    if file.exists():
        found = json.loads(file.read_bytes())
        raise getattr(lasaft.errors, found["kind"])(found["text"])


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _cpus_per_process(train: TrainConfig) -> float:
    """Return the CPUs for each process: as many as fit, a share of one if there are too few.

    Raises:
        ConfigError: the cluster has fewer GPUs than asked for.
    """
    import ray

    require_gpus(train.gpus)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return share_cpus([node.get("CPU", 0) for node in nodes], train.processes)


def share_cpus(nodes: Sequence[float], processes: int) -> float:
    """Return the most CPUs that each process can have when all of them fit on the nodes.

    >>> share_cpus([2], 1), share_cpus([2, 2, 2], 2), share_cpus([4, 8], 3), share_cpus([2], 4)
    (2.0, 2.0, 4.0, 0.5)
    """
    for share in range(int(max(nodes, default=0)), 0, -1):
        if sum(int(cpus) // share for cpus in nodes) >= processes:
            return float(share)
    # Ray counts in steps of 0.0001.
    return math.floor(10_000 * sum(nodes) / processes) / 10_000


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Keep other commands from training in the same folder.

    Raises:
        StageError: one does already.
    """
    folder.training.mkdir(parents=True, exist_ok=True)
    with (folder.training / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(
                f"output_dir {folder.root}: another command is training there"
            ) from None
        yield


@contextmanager
def _shown(folder: RunFolder, train: TrainConfig) -> Iterator[None]:
    """Show the workers' progress while the ``with`` lasts."""
    stop = threading.Event()
    file = folder.training / "progress.json"
    watcher = threading.Thread(
        target=_watch, args=(file, train, stop), name="progress", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _watch(file: Path, train: TrainConfig, stop: threading.Event) -> None:
    progress, shown, before = None, 0, None
    last = False
    while not last:
        last = stop.wait(_POLL_SECONDS)
        found = json.loads(file.read_bytes()) if file.exists() else None
        if found is None or found == before:
            continue
        before = found
        if progress is None:
            total = train.max_epochs * found["steps_per_epoch"]
            shown = found["step"]
            progress = Progress("training", total, "steps", done=shown)
        # After a crash the count goes back for a while.
        progress.advance(max(0, found["step"] - shown), _note(found, train))
        shown = max(shown, found["step"])
    if progress is not None:
        progress.close()


def _note(found: dict[str, Any], train: TrainConfig) -> str:
    if found["phase"] == "validate":
        return f"validating epoch {found['epoch'] + 1}/{train.max_epochs}"
    return (
        f"epoch {found['epoch'] + 1}/{train.max_epochs}, loss {found['loss']:.4g}, "
        f"lr {found['lr']:.2g}, {found['steps_per_second']:.3g} steps/s, "
        f"waiting for data {found['data_wait_share']:.0%}"
    )
