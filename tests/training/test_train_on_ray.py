"""Training on Ray: processes, raylets and nodes are killed, and nothing is lost."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lasaft
import pipeline.training.train
from lasaft.errors import CheckpointError, ConfigError, DataError, StageError
from pipeline.cluster.connection import prepare_environment
from pipeline.config import ClusterConfig, RunConfig, TrackingConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.identity import claim
from pipeline.training.loop.journal import read_history
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.state_file import load_state
from pipeline.training.train import fit, reported, train
from pipeline.workflow.stages import train_network
from tests.helpers.kills import UNDISTURBED, disturb, processes, training
from tests.helpers.processes import in_processes
from tests.helpers.small_training import WORKER, config_of, forget_step, prepare, session, step_of
from tests.helpers.training import (
    run_tiny,
    tiny_config,
    training_history,
    training_tensors,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore:.*is deprecated:DeprecationWarning:ray",  # Ray Data warns about its own defaults
)

CPU = torch.device("cpu")
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards."""
    folder = tmp_path_factory.mktemp("train")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster with one node of one CPU; this process is connected to it."""
    prepare_environment(ClusterConfig())
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args=NODE)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_missing_shards_are_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shards.*jobs\.preprocess"):
        train(RunConfig(output_dir=tmp_path, tracking=TrackingConfig(log=False)))


def test_a_start_that_does_not_fit_leaves_the_folder_free(root: Path, tmp_path: Path) -> None:
    junk = tmp_path / "x.ckpt"
    junk.write_bytes(b"junk")
    config = config_of(root, "warm", resume_from_checkpoint=junk)
    with pytest.raises(CheckpointError, match=r"resume_from_checkpoint.*x\.ckpt"):
        train(config)
    assert not (RunFolder.of(config).training / "identity.json").exists()


def test_a_refused_training_is_unknown_to_mlflow(root: Path, tmp_path: Path) -> None:
    config = config_of(root, "refused")
    tracked = config.model_copy(update={"tracking": TrackingConfig()})
    claim(RunFolder.of(config), config, "other data")
    RunFolder.of(config).state.touch()  # something has been trained
    with pytest.raises(ConfigError, match="data hash"):
        train_network(tracked)
    assert not RunFolder.of(config).tracking.exists()


@pytest.mark.timeout(900)
def test_kills_of_raylet_and_worker_and_ctrl_c_cost_nothing_but_time(root: Path) -> None:
    """``python -m benchmarks.kills`` does the same many times, and kills the command too.

    Here, tests/workflow kills the command in mid training.
    """
    steps = {"steps_per_epoch": 40}
    config = config_of(root, "killed", **steps)
    in_processes(2, root, session, config_of(root, UNDISTURBED, **steps))
    kinds = ["raylet", "worker", "interrupt"]
    random.Random(5).shuffle(kinds)
    job = training(root, **steps)
    kills = list(disturb(job, "killed", kinds, total=80, chance=random.Random(5)))
    assert sorted(kill.kind for kill in kills) == sorted(kinds)
    assert job.differences("killed") == []
    # A finished training returns at once.
    start = time.monotonic()
    result = train(config)
    assert time.monotonic() - start < 5  # Ray alone takes longer to start
    assert (result.epochs, result.steps) == (2, 80)
    assert result.val_sdr.keys() == {"vocals", "drums", "bass", "other"}
    assert lasaft.load_model(result.checkpoint).config == config.model
    # What Ray Train knows is what the journal says.
    known = reported(RunFolder.of(config))
    epoch = [r for r in read_history(RunFolder.of(config).metrics) if r["kind"] == "epoch"][-1]
    assert known.metrics is not None
    assert known.metrics | epoch["values"] == known.metrics | {"train/skipped_steps": 0}
    assert known.checkpoint is not None
    state = load_state(Path(known.checkpoint.path) / RunFolder.of(config).state.name)
    assert state is not None
    assert state.progress["step"] == 80


@pytest.mark.timeout(900)
def test_kills_change_nothing_where_validation_runs_beside(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "shards", tmp_path / "shards")
    options = {"steps_per_epoch": 40, "max_epochs": 3, "validation": "beside"}
    config = config_of(tmp_path, "beside", **options)
    # Without Ray the processes that train validate, at the same steps and with the same numbers.
    in_processes(2, tmp_path, session, config_of(tmp_path, UNDISTURBED, **options))
    job, kinds = training(tmp_path, **options), ["validator", "worker", "driver"]
    kills = list(disturb(job, "beside", kinds, total=120, chance=random.Random(1)))
    assert [kill.kind for kill in kills] == kinds
    assert job.differences("beside") == []
    epochs = [
        r["epoch"] for r in read_history(RunFolder.of(config).metrics) if r["kind"] == "epoch"
    ]
    assert epochs == [0, 1, 2]


def test_validation_that_finds_no_place_is_told_before_any_work(root: Path) -> None:
    for asked, said in (
        ("CPU=9", "validation_resources: validation takes 9 CPUs; the Ray cluster has 2 of 9 CPUs"),
        ("big=1", "validation_resources: validation takes 1 big; the Ray cluster has 0 of 1 big"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(config_of(root, "big", validation="beside", validation_resources=asked))
    each = {"resources_per_worker": "CPU=1", "validation": "beside"}
    with pytest.raises(ConfigError, match="3 processes, one of which validates,"):
        train(config_of(root, "many", **each))
    with pytest.raises(ConfigError, match="validation_resources: 2 CPUs leave no room for the 1"):
        train(config_of(root, "many", **each, world_size=1, validation_resources="CPU=2"))


def _workers() -> int:
    return len(processes(os.getpid(), WORKER))


@pytest.mark.timeout(600)
def test_a_range_of_processes_starts_with_what_is_there_and_grows(
    root: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.training.train, "_RESIZE_SECONDS", 1.0)
    config = config_of(
        root, "elastic", world_size="1:3", batch_size=7, steps_per_epoch=40, max_epochs=1000,
        mid_epoch_seconds=0.5,
    )  # fmt: skip
    folder, enough = RunFolder.of(config), threading.Event()

    class EnoughError(Exception):
        pass

    def heard(report: dict[str, Any]) -> None:
        if enough.is_set() and report["phase"] == "epoch":
            raise EnoughError

    def run() -> None:
        with pytest.raises(EnoughError):
            fit(config, folder, heard)

    # Nodes can be added in the main thread only.
    trainer = threading.Thread(target=run, daemon=True)
    trainer.start()

    def wait_until(done: Callable[[], bool]) -> None:
        while not done():
            assert trainer.is_alive(), "the training ended early"
            time.sleep(0.1)

    wait_until(lambda: step_of(config) > 0)
    assert _workers() == 1
    node = {key: value for key, value in NODE.items() if key != "include_dashboard"}
    cluster.add_node(**node | {"num_cpus": 2})
    wait_until(lambda: _workers() == 3)  # with 3, 2 and 2 windows
    forget_step(config)
    wait_until(lambda: step_of(config) > 0)
    enough.set()
    trainer.join()
    told = [r["step"] for r in read_history(folder.metrics) if r["kind"] == "step"]
    # Every step is told once, whatever the number of processes was.
    assert told == list(range(10, told[-1] + 1, 10))
    assert _free() == 3, "what the processes held was not given back"


def _free() -> float:
    import ray

    end = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 3 and time.monotonic() < end:
        time.sleep(0.2)
    return ray.available_resources().get("CPU", 0)


def _until_interrupted(config: RunConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_tiny(config, ranks=Ranks.current(CPU), stop_at=13)


def test_another_number_of_processes_goes_on_with_the_same_samples(tmp_path: Path) -> None:
    def config(name: str, **more: Any) -> RunConfig:
        options = {"batch_size": 8, "steps_per_epoch": 10, "optimizer": "sgd", "lr": 0.005}
        options |= {"sync_batchnorm": True, "mid_epoch_seconds": 1e-9}
        return tiny_config(tmp_path / name, **options | more)

    in_processes(2, tmp_path, _until_interrupted, config("changed", world_size=2))
    run_tiny(config("changed"))
    run_tiny(config("alone"))
    ours, theirs = training_tensors(config("changed")), training_tensors(config("alone"))
    for name, value in theirs.items():
        # 20 steps of float32 sums in another order.
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5, msg=name)
    pairs = zip(training_history(config("changed")), training_history(config("alone")), strict=True)
    for mine, its in pairs:
        assert mine["step"] == its["step"]
        assert mine["values"] == pytest.approx(its["values"], rel=1e-4, abs=1e-4)


def test_a_damaged_shard_ends_the_training_with_its_name(
    root: Path, tmp_path: Path, cluster: object
) -> None:
    broken = config_of(tmp_path, "broken", world_size=1)
    shutil.copytree(root / "shards", tmp_path / "shards")
    for shard in (tmp_path / "shards" / "train").glob("*.arrow"):
        data = bytearray(shard.read_bytes())
        quarter = len(data) // 4
        data[quarter:-quarter] = data[quarter:-quarter][::-1]
        shard.write_bytes(data)
    with pytest.raises(DataError, match=r"train/.*\.arrow"):
        train(broken)


def test_a_process_that_does_not_see_the_shards_is_named_by_its_node(
    root: Path, cluster: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    config = config_of(root, "blind", world_size=1, max_failures=0)
    shards = Path("/proc/self/cwd/shards")  # elsewhere this is another folder
    data = config.data.model_copy(update={"shards_dir": shards})
    joined = ClusterConfig(address="auto")
    with pytest.raises(StageError, match=rf"^shards_dir: {shards} is not shared storage: [\d.]+"):
        train(config.model_copy(update={"data": data, "cluster": joined}))


def test_more_than_there_is_room_for_is_refused(root: Path, cluster: object) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    with pytest.raises(ConfigError, match="gpus: got 2; the Ray cluster has 0 of 2 GPUs; allowed"):
        train(config_of(root, "gpus", gpus=2))
    with pytest.raises(ConfigError, match=r"2 processes with 9 CPUs each; .* has \d of 18 CPUs"):
        train(config_of(root, "room", resources_per_worker="CPU=9"))
