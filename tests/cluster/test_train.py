"""Training on Ray: processes and the driver are killed, and nothing is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

import lasaft
from lasaft.config import ModelConfig
from lasaft.errors import ConfigError, DataError
from pipeline.cluster import connected
from pipeline.config import (
    ClusterConfig,
    DataConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    to_json,
)
from pipeline.folders import RunFolder
from pipeline.train import train
from pipeline.training.session import run_session
from pipeline.training.state import state_file
from tests.helpers.processes import in_processes
from tests.helpers.shards import make_shards
from tests.helpers.songs import make_musdb
from tests.helpers.training import assert_same_training

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore:.*is deprecated:DeprecationWarning:ray",  # Ray Data warns about its own defaults
)

DRIVER = "import sys; from pipeline.config import from_json; from pipeline.train import train; " + (
    "train(from_json(open(sys.argv[1]).read()))"
)


def _config(root: Path, name: str, **options: object) -> RunConfig:
    settings = {
        "batch_size": 4, "steps_per_epoch": 12, "max_epochs": 2, "lr": 0.01,
        "mid_epoch_seconds": 0.05, "train_loss": "spec_l1", "world_size": 2,
    } | options  # fmt: skip
    return RunConfig(
        output_dir=root / name,
        model=ModelConfig(
            n_fft=256, hop_length=128, num_frame=32, n_blocks=3, internal_channels=4,
            n_internal_layers=2, num_tdfs=2, dk=4,
        ),
        data=DataConfig(musdb_root=root / "songs", shards_dir=root / "shards"),
        train=TrainConfig.model_validate(settings),
        tracking=TrackingConfig(log=False),
        cluster=ClusterConfig(num_cpus=2),
    )  # fmt: skip


def _session(config: RunConfig) -> None:
    run_session(config, torch.device("cpu"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs and shards, and an undisturbed training of two processes."""
    root = tmp_path_factory.mktemp("train")
    make_musdb(root / "songs", train=2, valid=1, test=0, seconds=2.0)
    make_shards(_config(root, "any"))
    in_processes(2, root, _session, _config(root, "undisturbed"))
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests; two CPUs give each of two processes one thread."""
    with connected(ClusterConfig(num_cpus=2)):
        yield


def _when_it_has_saved(config: RunConfig, after: float, act: Callable[[], None]) -> None:
    """Call ``act`` some time after the first training state of ``config`` is there."""
    state = state_file(RunFolder.of(config))
    end = time.monotonic() + 120
    while not state.exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(after)
    act()


def test_missing_shards_are_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shards.*jobs\.preprocess"):
        train(_config(tmp_path, "nothing"))


def test_a_killed_driver_goes_on_where_it_was(
    shards: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = _config(shards, "killed driver")
    file = tmp_path / "config.json"
    file.write_text(to_json(config))
    command = [sys.executable, "-c", DRIVER, str(file)]
    with subprocess.Popen(command, start_new_session=True) as driver:
        _when_it_has_saved(config, 0.1, lambda: os.killpg(driver.pid, signal.SIGKILL))
        assert driver.wait(60) == -signal.SIGKILL
    assert not (RunFolder.of(config).training / "result.json").exists()
    request.getfixturevalue("cluster")
    result = train(config)
    assert_same_training(config, _config(shards, "undisturbed"))
    assert result.val_sdr.keys() == {"vocals", "drums", "bass", "other"}


def test_a_killed_worker_costs_nothing_but_time(shards: Path, cluster: None) -> None:
    config = _config(shards, "killed worker")
    killed: list[int] = []

    def kill_one() -> None:
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return

    delay = random.Random(2).uniform(0, 0.2)
    killer = threading.Thread(target=_when_it_has_saved, args=(config, delay, kill_one))
    killer.start()
    result = train(config)
    killer.join()
    assert killed
    assert_same_training(config, _config(shards, "undisturbed"))
    assert (result.epochs, result.steps) == (2, 24)
    assert lasaft.load_model(result.checkpoint).config == config.model
    # A finished training returns at once.
    start = time.monotonic()
    assert train(config) == result
    assert time.monotonic() - start < 1


def test_a_damaged_shard_ends_the_training_with_its_name(
    shards: Path, tmp_path: Path, cluster: None
) -> None:
    broken = _config(tmp_path, "broken", world_size=1)
    shutil.copytree(shards / "shards", tmp_path / "shards")
    for shard in (tmp_path / "shards" / "train").glob("*.arrow"):
        data = bytearray(shard.read_bytes())
        quarter = len(data) // 4
        data[quarter:-quarter] = data[quarter:-quarter][::-1]
        shard.write_bytes(data)
    with pytest.raises(DataError, match=r"train/.*\.arrow"):
        train(broken)


def test_more_gpus_than_there_are_is_refused(shards: Path, cluster: None) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    with pytest.raises(ConfigError, match="gpus: got 2, allowed: at most 0"):
        train(_config(shards, "gpus", gpus=2))
