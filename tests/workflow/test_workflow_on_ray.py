"""The whole way from songs to report, small: what it leaves, skips, refuses and survives.

It goes where nodes come with the work and go again, then on this machine: the results are equal.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import parse
from jobs.run import main
from pipeline.cluster.connection import connected
from pipeline.config import ClusterConfig, RunConfig
from tests.helpers import ROOT
from tests.helpers.cloud import start_cloud, started
from tests.helpers.hosts import Hosts, hosts, why_not
from tests.helpers.object_store import store_on
from tests.helpers.processes import processor_seconds
from tests.helpers.programs import path_without
from tests.helpers.small_training import step_of
from tests.helpers.training import differences

SMALL = [
    "--preset", "demo", "--synthetic_train", "2", "--synthetic_valid", "1", "--synthetic_test", "1",
    "--synthetic_seconds", "2", "--steps_per_epoch", "30", "--max_epochs", "2",
    "--num_frame", "16", "--n_blocks", "3",
    "--internal_channels", "4", "--n_internal_layers", "1", "--num_tdfs", "2", "--dk", "4",
]  # fmt: skip
# The stage that is stopped, how, and how many seconds after its begin (None: once it has made
# something). Ray starts within the second that the first one gives it. Killed is the command
# alone ("driver"), or with it most of the Ray that it has started ("group").
STOPS = [
    ("songs", "interrupt", 1.0),
    ("songs", "group", None),
    ("preprocess", "interrupt", None),
    ("train", "driver", None),
    ("evaluate", "group", None),
    ("report", "group", 0.2),
]


# One CPU, as the nodes have that come: with two, sums would be taken in another order.
HERE = ["--num_cpus", "1"]


def _command(output: Path | str, *place: str) -> list[str]:
    return [sys.executable, "-m", "jobs.run", "--json", *SMALL, "--output_dir", str(output), *place]


def _run(output: Path, *more: str) -> dict[str, Any]:
    command = _command(output, *HERE, *more)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "said": done.stderr}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run in a folder with spaces.

    It begins on a head without CPUs and without ffmpeg, and without any other node: they come.
    """
    output = tmp_path_factory.mktemp("run") / "a run, with spaces"
    if why_not() is not None:
        return output, _run(output)
    programs = path_without(tmp_path_factory.mktemp("bin"), "ffmpeg", "ffprobe")
    with hosts(2) as cloud:
        start_cloud(cloud, {"small": {"CPU": 1, "memory": 2e9}}, idle_seconds=3)
        words = _command(output, "--address", cloud.head)
        done = cloud.run(0, "env", f"PATH={programs}", *words)
        assert done.returncode == 0, done.stderr
        came = started(cloud).read_text().split()
        return output, {**json.loads(done.stdout), "said": done.stderr, "came": came}


@pytest.mark.timeout(300)
def test_nodes_come_with_the_work_and_go_and_come_again(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    assert "waiting for nodes: 0 of 1 CPU\n" in finished[1]["said"]
    # A training takes longer to begin than a node may be idle here.
    assert len(finished[1]["came"]) >= 2


@pytest.mark.timeout(240)
def test_a_run_ends_with_scores_a_report_and_a_model(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    output, result = finished
    assert set(result["scores"]) == {"CUNET_TFC_GPoCM_LaSAFT", "mixture"}
    assert set(result["scores"]["mixture"]) == {"vocals", "drums", "bass", "other", "average"}
    assert "skipped" not in result["steps"].values()
    for name in ("report/index.html", "report/leaderboard.csv", "checkpoint/weights.safetensors"):
        assert (output / name).stat().st_size > 0


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_mlflow_holds_config_metrics_scores_report_and_audio(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    from mlflow import MlflowClient

    output, result = finished
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lasaft")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (run,) = (one for one in runs if "mlflow.parentRunId" not in one.data.tags)
    assert {*result["scores"], "mixture"} <= {one.info.run_name for one in runs if one is not run}
    assert run.data.params["model.n_fft"] == "1024"
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "valid/loss")
    assert len(losses) == 2
    scores = result["scores"]["CUNET_TFC_GPoCM_LaSAFT"]
    assert run.data.metrics["test/vocals/SDR"] == pytest.approx(scores["vocals"]["SDR"])
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"report", "audio", "scores", "model"} <= artifacts


@pytest.mark.timeout(120)
def test_a_second_run_skips_everything_and_says_so(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    output, result = finished
    before = processor_seconds()
    again = _run(output)
    assert processor_seconds() - before < 8
    assert set(again["steps"].values()) == {"skipped"}
    assert again["scores"] == result["scores"]
    assert again["said"].count("unchanged, skipped") == 5


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the commands that are given in this process."""
    with connected(ClusterConfig()):
        yield


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
def test_a_changed_evaluation_option_leaves_songs_shards_and_training_alone(
    finished: tuple[Path, dict[str, Any]], cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def made_by(*more: str) -> list[str]:
        assert main([*SMALL, "--json", "--output_dir", str(finished[0]), *more]) == 0
        steps = json.loads(capsys.readouterr().out)["steps"]
        return [name for name, what in steps.items() if what != "skipped"]

    assert made_by("--overlap_ratio", "0") == ["evaluate", "report"]
    assert made_by() == ["evaluate"]  # the first report comes back from where it was kept


def test_without_ffmpeg_stem_mp4_is_refused_in_one_line_that_says_what_to_install(
    tmp_path: Path,
    cluster: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for split in ("train", "valid", "test"):
        song = tmp_path / "musdb18" / split / f"Artist - {split}.stem.mp4"
        song.parent.mkdir(parents=True)
        song.write_bytes(b"never opened")
    monkeypatch.setenv("PATH", path_without(tmp_path, "ffmpeg", "ffprobe"))
    words = ["--musdb_root", str(tmp_path / "musdb18"), "--output_dir", str(tmp_path / "run")]
    assert main(words) == 1
    assert "install ffmpeg" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.timeout(600)
def test_a_run_that_is_stopped_in_each_stage_ends_as_an_undisturbed_one(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """What MLflow has of a command that was killed, tests/tracking looks at."""
    output, unlogged = tmp_path / "run", ("--log", "False")
    for stage, how, seconds in STOPS:
        process = subprocess.Popen(
            _command(output, *HERE, *unlogged),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _wait_for_start(output, stage, process)
            while seconds is None and not _has_made_something(output, stage):
                assert process.poll() is None, "the run ended before it could be stopped"
                time.sleep(0.02)
            time.sleep(seconds or 0)
            if how == "interrupt":
                os.killpg(process.pid, signal.SIGINT)
            elif how == "driver":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        start = time.monotonic()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == (130 if how == "interrupt" else -signal.SIGKILL)
        if how == "interrupt":
            # Some 4 s on idle cores; where Ray is just starting it does so first, 30 s at most.
            assert time.monotonic() - start < 60
            assert errors.rstrip().endswith("interrupted; the same command goes on from here")
            assert "Traceback" not in errors
    assert _run(output, *unlogged)["scores"] == finished[1]["scores"]
    assert differences(_config(output), _config(finished[0])) == []


@pytest.mark.timeout(600)
def test_a_run_in_a_bucket_on_hosts_that_share_nothing_ends_alike(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    """The command is killed in the training, and given again on hosts that have nothing of it."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with hosts(4, apart=True) as cloud, store_on(cloud, 3) as bucket:
        cloud.start_all()
        words = ["env", "MLFLOW_TRACKING_URI=", *_command(bucket, "--address", cloud.head)]
        assert cloud.run(0, "sh", "-c", "echo x > /home/x && cat /home/x").stdout == "x\n"
        assert cloud.run(1, "cat", "/home/x").returncode != 0
        first = cloud.start(0, *words)
        assert first.stderr is not None
        assert any(re.match(r"training: \d", line) for line in first.stderr)
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        for host, steps in ((1, {"train", "evaluate", "report"}), (2, set[str]())):
            done = cloud.run(host, *words)
            assert done.returncode == 0, done.stderr
            result = json.loads(done.stdout)
            assert result["scores"] == finished[1]["scores"]
            assert result["output_dir"] == "s3://bucket/run"
            assert {name for name, what in result["steps"].items() if what != "skipped"} == steps
        _evaluate_elsewhere(cloud, bucket, finished[1]["scores"])


def _evaluate_elsewhere(cloud: Hosts, bucket: str, scores: dict[str, Any]) -> None:
    """Score the run's model on its songs as somebody who has but their addresses."""
    assert cloud.run(0, "rm", "-r", "/home/.cache").returncode == 0
    places = {"musdb_root": "run/songs", "checkpoint": "run/checkpoint", "output_dir": "other"}
    words = [f"--{name}={bucket.replace('/run?', f'/{at}?')}" for name, at in places.items()]
    words += ["--log", "False", "--json", "--address", cloud.head]
    done = cloud.run(0, sys.executable, "-m", "jobs.evaluate", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scores"] == scores


def _wait_for_start(output: Path, stage: str, process: subprocess.Popen[Any]) -> None:
    stamp = output / "steps" / f"{stage}.json"
    end = time.monotonic() + 150
    while time.monotonic() < end:
        assert process.poll() is None, "the run ended before it could be stopped"
        if stamp.exists() and json.loads(stamp.read_text())["state"] == "started":
            return
        time.sleep(0.05)
    raise AssertionError(f"{stage} did not start in time")


def _has_made_something(output: Path, stage: str) -> bool:
    if stage == "train":
        return step_of(_config(output)) > 30  # in the second epoch
    made = {"songs": "songs/*/*", "preprocess": "shards/*/*", "evaluate": "scores/*"}
    return any(output.glob(made[stage]))


def _config(output: Path) -> RunConfig:
    return parse([*SMALL, "--output_dir", str(output)], "run").config
