"""Searches on Ray: killed anywhere, interrupted, with failing trials, on one CPU."""

from __future__ import annotations

import csv
import html
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.cli import parse
from lasaft.checkpoint import WEIGHTS
from lasaft.config import ModelConfig
from lasaft.errors import ConfigError, StageError
from pipeline.cluster.connection import connected
from pipeline.cluster.run_store import RunStore
from pipeline.config import (
    ClusterConfig,
    DataConfig,
    RunConfig,
    SearchConfig,
    TrackingConfig,
    TrainConfig,
    to_json,
)
from pipeline.config.folders import RunFolder
from pipeline.search.candidates import Checker, trial_base
from pipeline.search.ranking import SearchResult
from pipeline.search.search import search
from pipeline.search.space_reader import read_space
from pipeline.search.trials import TrialBook
from pipeline.workflow.stages import search_settings
from tests.helpers import ROOT
from tests.helpers.object_store import address, object_names, object_store, put_folder
from tests.helpers.processes import in_processes
from tests.helpers.shards import make_shards
from tests.helpers.small_training import session
from tests.helpers.songs import make_musdb
from tests.helpers.training import training_history

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore:.*is deprecated",
    "ignore::FutureWarning:ray",
    "ignore::RuntimeWarning:ray",
)

DRIVER = """
import sys
from jobs.cli.run import Result, run_job
from jobs.cli import Command
from pipeline.config import from_json
from pipeline.search.search import search
config = from_json(open(sys.argv[1]).read())
def work(command):
    search(config)
    return Result("", {})
sys.exit(run_job("tune", [], lambda words: Command("tune", config), work))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of three short songs, and small spaces."""
    root = tmp_path_factory.mktemp("tune")
    make_musdb(root / "songs", train=2, valid=1, test=0, seconds=2.0)
    make_shards(_config(root, "any"))
    (root / "rates.yaml").write_text("options: {lr: [0.003, 0.01]}\n")
    # The second network's first convolution alone would take petabytes: no machine has them.
    (root / "huge.yaml").write_text(
        "options:\n"
        "  internal_channels: [4, 65536, 2]\n"
        "  kernel_size_t: {choices: [65535], when: {internal_channels: 65536}}\n"
    )
    (root / "steep.yaml").write_text("options: {lr: [0.01, 0.00001]}\n")
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray with one CPU for all tests."""
    with connected(ClusterConfig(num_cpus=1)):
        yield


def _config(root: Path, name: str, **options: Any) -> RunConfig:
    train = {"batch_size": 4, "steps_per_epoch": 4, "max_epochs": 3, "train_loss": "spec_l1"}
    for key in [key for key in options if key in TrainConfig.model_fields]:
        train[key] = options.pop(key)
    log = options.pop("log", False)
    return RunConfig(
        output_dir=root / name,
        model=ModelConfig(
            n_fft=1024, hop_length=512, num_frame=32, n_blocks=3, internal_channels=4,
            n_internal_layers=2, num_tdfs=2, dk=4, embedding_dim=4, control_n_layer=2,
            pocm_norm=None, spec_type="magnitude", spec_est_mode="masking",
        ),
        data=DataConfig(musdb_root=root / "songs", shards_dir=root / "shards"),
        train=TrainConfig(**train),
        search=SearchConfig(**options),
        tracking=TrackingConfig(log=log),
        cluster=ClusterConfig(num_cpus=1),
    )  # fmt: skip


def _table(result: SearchResult) -> list[dict[str, Any]]:
    """The table without what the clock decides."""
    rows = json.loads((result.folder / "results.json").read_bytes())["trials"]
    return [{k: v for k, v in row.items() if k != "training_seconds"} for row in rows]


def _when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    def wait() -> None:
        end = time.monotonic() + 120
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def _sessions(configs: list[RunConfig]) -> None:
    for config in configs:
        session(config)


def _assert_as_alone(trials: list[RunConfig], folder: Path) -> None:
    """Trials are what the same settings give without a search, to the last bit."""
    alone = [
        ours.model_copy(update={"output_dir": folder / f"alone{number}"})
        for number, ours in enumerate(trials)
    ]
    in_processes(1, folder, _sessions, alone)
    for ours, one in zip(trials, alone, strict=True):
        assert training_history(ours) == training_history(one)
        weights = [RunFolder.of(each).checkpoint / WEIGHTS for each in (ours, one)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_search_that_is_interrupted_and_killed_ends_as_its_trials_do_alone(
    root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    disturbed = _config(root, "disturbed", space=str(root / "rates.yaml"))
    file = tmp_path / "config.json"
    file.write_text(to_json(disturbed))
    trials = RunFolder.of(disturbed).root / "search" / "trials"
    command = [sys.executable, "-c", DRIVER, str(file)]
    for number, how in (("0000", signal.SIGINT), ("0001", signal.SIGKILL)):
        state = trials / number / "training" / "state.safetensors"
        with subprocess.Popen(
            command, start_new_session=True, cwd=ROOT, stderr=subprocess.PIPE, text=True
        ) as driver:
            if how == signal.SIGINT:
                _when(state.exists, lambda pid=driver.pid: os.kill(pid, signal.SIGINT)).join()
            else:
                _when(state.exists, lambda pid=driver.pid: os.killpg(pid, signal.SIGKILL)).join()
            start = time.monotonic()
            code = driver.wait(60)
            assert code == (130 if how == signal.SIGINT else -signal.SIGKILL)
            assert time.monotonic() - start < 25  # some 4 s on idle cores
    request.getfixturevalue("cluster")
    found = search(disturbed)
    assert [row.trial.status for row in found.rows] == ["done"] * 2
    _assert_as_alone([row.trial.config for row in found.rows], tmp_path)
    # A finished search returns at once.
    start = time.monotonic()
    assert _table(search(disturbed)) == _table(found)
    assert time.monotonic() - start < 2


@pytest.mark.timeout(600)
def test_a_search_in_a_bucket_goes_on_on_another_machine(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each machine has nothing but the store; the first one is killed in the second trial."""
    with object_store() as port:
        place = address("run", port)
        put_folder(root / "shards", address("run/shards", port))
        config = _config(root, "x", space=str(root / "rates.yaml"), seeds=1, top_settings=1)
        data = config.data.model_copy(update={"shards_dir": None})
        config = config.model_copy(update={"output_dir": place, "data": data})
        file = tmp_path / "config.json"
        file.write_text(to_json(config))
        state = "search/trials/0001/training/state.safetensors"
        for machine in ("first", "second"):
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
            with subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(file)], start_new_session=True, cwd=ROOT
            ) as driver:
                if machine == "first":
                    _when(
                        lambda: state in object_names(place),
                        lambda pid=driver.pid: os.killpg(pid, signal.SIGKILL),
                    ).join()
                assert driver.wait(300) == (-signal.SIGKILL if machine == "first" else 0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
        folder = RunFolder.of(config)
        RunStore(folder).pull()
        rows = json.loads((folder.search / "results.json").read_bytes())
        assert [row["status"] for row in (*rows["trials"], *rows["repeats"])] == ["done"] * 3
        space = read_space(str(root / "rates.yaml"))
        book = TrialBook(folder.search, Checker(trial_base(config), space))
        _assert_as_alone([book.read(row["trial"]).config for row in rows["trials"]], tmp_path)


def test_a_failing_trial_and_a_killed_process_disturb_no_other_trial(
    root: Path, cluster: None
) -> None:
    config = _config(root, "failing", space=str(root / "huge.yaml"), log=True)
    killed: list[int] = []

    def kill_one() -> None:
        for process in psutil.Process().children(recursive=True):
            if "ResourceTrainable" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return

    state = (
        RunFolder.of(config).root / "search" / "trials" / "0000" / "training" / "state.safetensors"
    )
    killer = _when(state.exists, kill_one)
    result = search_settings(config)
    killer.join()
    assert killed
    status = {row.trial.settings["internal_channels"]: row.trial.status for row in result.rows}
    assert status == {4: "done", 2: "done", 65536: "failed"}
    reasons = [row.trial.reason for row in result.rows if row.trial.status == "failed"]
    assert "memory" in reasons[0]
    assert [row.rank for row in result.rows] == [1, 2, None]
    with (result.folder / "results.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done", "done", "failed"]
    page = html.unescape(result.page.read_text())
    assert "1 failed" in page
    assert reasons[0] in page
    _check_mlflow(config, result)
    _check_preset(config, result)


def _check_mlflow(config: RunConfig, result: SearchResult) -> None:
    """A run of the search, and below it a run of each trial with its curve and how it ended."""
    from mlflow import MlflowClient

    from pipeline.tracking import tracking_address

    client = MlflowClient(tracking_address(config))
    experiment = client.get_experiment_by_name(config.tracking.experiment_name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    ends = {run.info.run_name: run.info.status for run in children}
    assert ends == {
        row.trial.title: "FAILED" if row.trial.status == "failed" else "FINISHED"
        for row in result.rows
    }
    for run in children:
        channels = run.data.params["model.internal_channels"]
        curve = client.get_metric_history(run.info.run_id, "valid/loss")
        assert len(curve) == (0 if channels == "65536" else config.train.max_epochs)


def _check_preset(config: RunConfig, result: SearchResult) -> None:
    """The winner's settings go into jobs.train as they are."""
    words = ["--preset", str(result.preset), "--shards_dir", str(config.data.shards_dir)]
    found = parse(
        [*words, "--output_dir", str(RunFolder.of(config).root / "again")], "train"
    ).config
    channels = result.winner.trial.settings["internal_channels"]
    assert found.model == config.model.model_copy(update={"internal_channels": channels})
    assert found.train == config.train


def test_asha_with_two_processes_a_trial_leaks_no_places_on_one_cpu(
    root: Path, cluster: None
) -> None:
    from ray.util import placement_group_table

    config = _config(
        root, "asha", space=str(root / "steep.yaml"), scheduler="asha", world_size=2,
        reduction_factor=2, max_epochs=2,
    )  # fmt: skip
    result = search(config)
    status = {row.trial.settings["lr"]: row.trial.status for row in result.rows}
    assert status == {0.01: "done", 0.00001: "stopped"}
    assert all("asha: sdr" in r.trial.reason for r in result.rows if r.trial.status == "stopped")
    left = [one for one in placement_group_table().values() if one["state"] != "REMOVED"]
    assert left == []


def test_a_budget_of_epochs_is_kept_and_can_be_raised(root: Path, cluster: None) -> None:
    config = _config(root, "budget", space=str(root / "steep.yaml"), total_epochs=3, max_epochs=2)
    result = search(config)
    assert sum(row.trial.epochs for row in result.rows) == 3
    assert result.note == "the budget is used up: total_epochs 3"
    more = config.search.model_copy(update={"total_epochs": None, "seeds": 2, "top_settings": 1})
    whole = search(config.model_copy(update={"search": more}))
    assert [row.trial.status for row in whole.rows] == ["done", "done"]
    assert len(whole.winner.repeats) == 2
    assert whole.winner.spread is not None


def test_a_node_that_does_not_see_the_shards_ends_the_search_with_its_name(
    root: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    config = _config(root, "blind", space=str(root / "rates.yaml"))
    shards = Path("/proc/self/cwd/shards")  # elsewhere this is another folder
    data = config.data.model_copy(update={"shards_dir": shards})
    joined = ClusterConfig(address="auto")
    with pytest.raises(StageError, match=rf"^shards_dir: {shards} is not shared storage: [\d.]+"):
        search(config.model_copy(update={"data": data, "cluster": joined}))


def test_another_search_in_the_same_folder_is_refused(root: Path) -> None:
    config = _config(root, "budget", space=str(root / "rates.yaml"), num_trials=2)
    with pytest.raises(ConfigError, match=r"space: got 'rates .* but the search in"):
        search(config)
