"""Training on Ray: one process or many, started again when one dies, shown while it runs."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from lasaft.errors import ConfigError, DataError, Problem, StageError
from pipeline.cluster.address import named_address
from pipeline.cluster.connection import connected, resources_of_nodes
from pipeline.cluster.interrupts import raise_if_received
from pipeline.cluster.nodes import Lack, patience_seconds, require_places, wait_for_room
from pipeline.cluster.one_writer import alone_in_run
from pipeline.cluster.progress import Progress, say
from pipeline.cluster.resources import Amounts, in_words, room, share_cpus, without
from pipeline.cluster.run_store import STATES, TRAINED, RunStore
from pipeline.cluster.shared_storage import seen_folders
from pipeline.cluster.store import note_written, written_lately
from pipeline.config import RunConfig, TrainConfig, to_json
from pipeline.config.folders import RunFolder
from pipeline.data.shards.manifest import read_manifest
from pipeline.data.shards.store import shard_place
from pipeline.training.loop.identity import claim, finished, has_begun
from pipeline.training.loop.records import TrainResult
from pipeline.training.loop.right_to_write import trains_here
from pipeline.training.loop.states import drop_states, newest_state
from pipeline.training.steering import ray_storage, run_workers, steering_lost

if TYPE_CHECKING:
    from ray.train import Result

_POLL_SECONDS = 0.5
_END_SECONDS = 60.0
# A range of processes looks so often whether there is room for more: a change costs a new start.
_RESIZE_SECONDS = 60.0
# After a node's death Ray may ask for its place once more; with its own 60 s it waits longer.
_ELASTIC_START_SECONDS = "15"


def train(config: RunConfig, begin: Callable[[], None] = lambda: None) -> TrainResult:
    """Train the network of ``config`` on its shards, or go on where an earlier call was stopped.

    Args:
        config: the run's settings; the shards must be there.
        begin: called once nothing speaks against the training, before it goes on.

    Returns:
        What came out; at once if this training was finished before.

    Raises:
        ConfigError: options that do not fit the shards, the cluster, or an earlier training in
            the same ``output_dir``.
        DataError: the shards are missing or damaged.
        CheckpointError: ``resume_from_checkpoint`` does not fit.
        StageError: training ended without a result; the saved state is kept.
    """
    folder = RunFolder.of(config)
    manifest = read_manifest(shard_place(folder))
    manifest.require_model(config.model)
    with alone_in_run(config):
        _check_start(folder, config)
        claim(folder, config, manifest.hash)
        result = finished(folder, config)
        if result is not None:
            from pipeline.training.loop.published import state_licences, verify  # imports torch

            verify(folder, config, result)
            state_licences(folder, config)
        store = RunStore(folder)
        store.push(*TRAINED)
        begin()
        if result is not None:
            say(f"training: finished before in {folder.training}, nothing is left")
            return result
        if short := manifest.too_short(config.model.num_frame):
            say(f"training: {short}")
        with connected(config.cluster, "to train"), closing(TrainingLine(config.train)) as line:

            def heard(report: dict[str, Any]) -> None:
                line(report)
                if report["phase"] == "epoch":
                    with suppress(DataError):  # the journal, for MLflow, comes with the next one
                        if not trains_here(store):
                            store.pull("training", but=STATES)

            fit(config, folder, heard)
        result = finished(folder, config)
    assert result is not None, "the workers ended without a result"
    return result


def fit(config: RunConfig, folder: RunFolder, heard: Callable[[dict[str, Any]], None]) -> None:
    """Run the workers to the end; call while connected, alone in ``folder``.

    Args:
        heard: called here with each report of the first process; its exceptions end the training.

    Raises:
        LasaftError: training ended without a result.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    train = config.train
    each = _resources(config)
    elastic = isinstance(train.world_size, str) and not train.gpus
    scaling = {
        "num_workers": train.world_sizes if elastic else train.processes,
        "use_gpu": "GPU" in each,
        "resources_per_worker": each,
        "elastic_resize_monitor_interval_s": _RESIZE_SECONDS,
    }
    _take_over(folder)
    # In a process of its own: in this one's main thread Ray Train would take over Ctrl-C.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    task = ray.remote(run_workers).options(
        num_cpus=0,
        max_retries=0,
        scheduling_strategy=here,
        runtime_env={"env_vars": _ray_settings(config, elastic=elastic)},
    )
    # Nodes may go and come as long as training lasts: Ray waits for them without an end.
    lack = Lack("", each, train.world_sizes[0], math.inf)
    say(f"training: starting {in_words(each)} for each of {train.world_sizes[0]} processes ...")
    known = {
        "config": to_json(config),
        "folders": seen_folders(config),
        "written": written_lately(),
        "validator": train.validator or each,
    }
    running = task.remote(known, scaling, reports)
    try:
        _listen(running, reports, heard, lack)
        note_written(ray.get(running))
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise steering_lost(folder, error) from error
    except KeyboardInterrupt:
        ray.cancel(running, force=True)
        raise
    except BaseException:
        _end(running, reports)
        raise
    finally:
        reports.shutdown(force=True)
    store = RunStore(folder)
    store.pull(*TRAINED)
    if train.save_weights_only and (result := finished(folder, config)) and not result.timed_out:
        drop_states(folder)
        store.push("training")


def reported(folder: RunFolder) -> Result:
    """Return what Ray Train knows of the training in ``folder``: last metrics, last checkpoint.

    Raises:
        StageError: nothing has been reported there.
    """
    from ray.train import Result

    runs = sorted(folder.ray_train.glob("*/"))
    if not runs:
        raise StageError(f"{folder.ray_train}: no training has reported to Ray Train here")
    path, system = ray_storage(folder)
    return Result.from_path(f"{path}/{runs[-1].name}", storage_filesystem=system)


def _take_over(folder: RunFolder) -> None:
    """Put the newest state where Ray Train does not know of it: each command is a new run to it.

    A command that was killed may have left a half written index behind, or processes that write
    for some seconds more; and another release of Ray Train refuses the index of this one.
    """
    if folder.address is not None:  # there a state is not moved: the next one replaces it
        return
    newest = newest_state(folder)
    if newest is not None:
        newest.replace(folder.state)
    shutil.rmtree(folder.ray_train, ignore_errors=True)


def _listen(
    running: Any, reports: Any, heard: Callable[[dict[str, Any]], None], lack: Lack
) -> None:
    """Pass each report on, and return at the end of the training."""
    import ray
    from ray.util.queue import Empty

    going = True
    while going:
        going = not ray.wait([running], timeout=0)[0]
        raise_if_received()
        lack.look()
        with suppress(Empty):
            heard(reports.get(timeout=_POLL_SECONDS if going else 0.01))
            going = True


def _end(running: Any, reports: Any) -> None:
    """End the training in order: killed, Ray Train would not give back what it holds."""
    import ray

    reports.shutdown(force=True)  # the next report fails, and with it the training
    ended, _ = ray.wait([running], timeout=_END_SECONDS)
    # A task that is cancelled in the instant of its end takes this process down with it (Ray 2.60).
    if not ended:
        ray.cancel(running, force=True)


def _ray_settings(config: RunConfig, *, elastic: bool) -> dict[str, str]:
    """Return the environment of the process that steers the others."""
    import ray

    # A cluster that we start here has nodes that do not go, and a dashboard only on request.
    remote = named_address(config.cluster) is not None
    shared, tracked = str(int(remote)), str(int(remote or config.cluster.dashboard))

    # Ray Train's clean-up asks a cluster whether the training still runs, and ends it where not:
    # without an address it would ask the newest cluster on this machine, which may be another.
    settings = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    for name in ("METRICS_ENABLED", "ENABLE_PREEMPTION_WATCHER"):
        settings[f"RAY_TRAIN_{name}"] = shared
    settings["RAY_TRAIN_ENABLE_STATE_TRACKING"] = tracked
    if elastic:
        settings["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = _ELASTIC_START_SECONDS
    return settings | {k: v for k, v in os.environ.items() if k.startswith("RAY_TRAIN_")}


def _check_start(folder: RunFolder, config: RunConfig) -> None:
    """Refuse a first start from a checkpoint that does not fit, before the folder is claimed."""
    start = config.train.resume_from_checkpoint
    if start is not None and not has_begun(folder):
        from pipeline.training.loop.first_weights import starting_weights

        starting_weights(start, config.model)


def _resources(config: RunConfig) -> dict[str, float]:
    """Return what each process holds: as asked for, and an even share of the CPUs.

    Where nodes may still come, the fewest processes have a CPU each at least; they are waited for.
    What validates beside them has its place too: as one of them, or what it asks for itself.
    """
    require_places(config)
    train, patience = config.train, patience_seconds(config.cluster)
    beside = ({"GPU": 1.0} if train.gpus else {}) | train.resources
    fewest, most = (number + train.extra_processes for number in train.world_sizes)

    def share() -> float:
        return min(share_cpus(way, most, beside) for way in _ways(train))

    shared = 0.0 if patience else share()
    # A range starts with as many as there are CPUs, not with many that share one.
    least = {"CPU": shared if 0 < shared < 1 and fewest == most else 1.0} | beside
    validates = ", one of which validates," if train.extra_processes else ""
    wanted = f"resources_per_worker: {fewest} processes{validates} with {in_words(least)} each"
    allowed = "less for each, or fewer processes (world_size, gpus)"
    wait_for_room(config, Lack(wanted, least, fewest, patience, allowed))
    if not patience and min(room(way, least) for way in _ways(train)) < fewest:
        reason = f"{in_words(train.validator)} leave no room for the {fewest} that train"
        allowed = "less, or validation inline"
        raise ConfigError(Problem("validation_resources", reason=reason, allowed=allowed))
    cpus = share()
    return {"CPU": cpus if fewest == most else max(1.0, cpus)} | beside


def _ways(train: TrainConfig) -> list[Sequence[Amounts]]:
    """Return what the nodes have for those that train, wherever validation has its own place."""
    nodes = resources_of_nodes()
    return (without(nodes, train.validator) if train.validator else []) or [nodes]


class TrainingLine:
    """Shows the reports of a training as progress."""

    def __init__(self, train: TrainConfig) -> None:
        self._train = train
        self._progress: Progress | None = None
        self._shown, self._process = 0, ""
        self._said: set[str] = set()

    def __call__(self, report: dict[str, Any]) -> None:
        """Show where the training is."""
        step, process = report["step"], report["process"]
        if self._progress is None:
            total = self._train.max_epochs * report["steps_per_epoch"]
            self._progress = Progress("training", total, "steps", done=step)
            self._shown = step
        elif process != self._process:
            self._progress.say(f"training: started again, it is at step {step}")
        self._process = process
        # After a crash the count goes back for a while.
        self._progress.advance(max(0, step - self._shown), _note(report, self._train))
        self._shown = max(self._shown, step)
        for text in report["notes"]:
            if text not in self._said:
                self._progress.say(f"training: {text}")
                self._said.add(text)

    def close(self) -> None:
        """End the line."""
        if self._progress is not None:
            self._progress.close()


def _note(found: dict[str, Any], train: TrainConfig) -> str:
    if found["phase"] == "validate":
        return f"validating epoch {found['epoch'] + 1}/{train.max_epochs}"
    return (
        f"epoch {found['epoch'] + 1}/{train.max_epochs}, loss {found['loss']:.4g}, "
        f"lr {found['lr']:.2g}, {found['steps_per_second']:.3g} steps/s, "
        f"{found['music_seconds_per_second']:.3g} s of music/s, "
        f"waiting for data {found['data_wait_share']:.0%}"
    )
