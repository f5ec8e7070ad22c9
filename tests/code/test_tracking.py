"""MLflow gets every record, whatever happens to it; the work never waits for it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig, TrackingConfig
from pipeline.folders import RunFolder
from pipeline.tracking import Tracker, ui_command
from pipeline.tracking.outbox import Follower
from pipeline.training.history import History, make_record

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# Port 9 (discard) answers nobody: connections are refused at once.
DEAD = "http://127.0.0.1:9"


def _config(root: Path, **tracking: Any) -> RunConfig:
    return RunConfig(output_dir=root, tracking=TrackingConfig(**tracking))


def _journal(folder: RunFolder, steps: range) -> None:
    history = History(folder.metrics, 10**9)
    for step in steps:
        values = {"train/loss": 1 / step, "train/lr": 0.1, "train/nothing": float("nan")}
        history.append(make_record("step", step=step, epoch=0, seconds=step / 10, values=values))
    history.close()


def _work(config: RunConfig, steps: range = range(1, 31)) -> None:
    """Do what a stage does with its tracker."""
    folder = RunFolder.of(config)
    folder.report.mkdir(parents=True, exist_ok=True)
    (folder.report / "index.html").write_text("<p>report</p>")
    with Tracker(config, folder) as tracker:
        tracker.log_params()
        tracker.follow(folder.metrics)
        _journal(folder, steps)
        tracker.log_metrics({"test/vocals/SDR": 5.5, "test/drums/SDR": float("inf")}, step=2)
        tracker.log_artifact(folder.report, "report")
        tracker.log_table("scores", ["source", "SDR"], [["vocals", 5.5], ["drums", None]])
        tracker.set_tags({"data": "abc"})


def _runs(config: RunConfig) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{RunFolder.of(config).root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(config.tracking.experiment_name)
    assert experiment is not None
    return client, client.search_runs([experiment.experiment_id])


def _assert_complete(config: RunConfig, last_step: int = 30) -> None:
    client, runs = _runs(config)
    assert len(runs) == 1
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert run.data.params["model.n_fft"] == "2048"
    assert run.data.params["model.sources"] == '["vocals", "drums", "bass", "other"]'
    assert run.data.metrics["test/vocals/SDR"] == 5.5
    assert "test/drums/SDR" not in run.data.metrics
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in losses] == [(n, 1 / n) for n in range(1, last_step + 1)]
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"report", "scores.json"}
    assert run.data.tags["data"] == "abc"
    logged = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert logged == [{"path": "scores.json", "type": "table"}]
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "scores.json")).read_text())
    assert table == {"columns": ["source", "SDR"], "data": [["vocals", 5.5], ["drums", None]]}


def test_everything_a_stage_says_is_in_one_run(tmp_path: Path, capfd: Any) -> None:
    config = _config(tmp_path, run_id="my run")
    _work(config)
    _work(config, range(31, 41))
    assert capfd.readouterr().err == ""
    _assert_complete(config, 40)
    _, runs = _runs(config)
    assert runs[0].info.run_name == "my run"
    assert runs[0].info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())


def test_an_outage_stops_nothing_and_loses_nothing(tmp_path: Path, capfd: Any) -> None:
    start = time.monotonic()
    _work(_config(tmp_path, tracking_uri=DEAD))
    # MLflow's own defaults would block for minutes; ours is a try and a sentence. Most of this
    # time is the import of MLflow.
    assert time.monotonic() - start < 25
    complaints = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(complaints) == 1
    assert DEAD in complaints[0]
    assert "the next command on this folder sends them" in complaints[0]
    config = _config(tmp_path)
    with Tracker(config, RunFolder.of(config)):
        pass
    _assert_complete(config)


def test_nothing_is_told_twice_after_a_kill_between_telling_and_noting(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _work(config)
    sent = RunFolder.of(config).tracking / "sent.json"
    noted = json.loads(sent.read_bytes())
    sent.write_text(json.dumps(noted | {"entries": 0, "steps": {}, "run": None}))
    with Tracker(config, RunFolder.of(config)):
        pass
    _assert_complete(config)


def test_a_changed_setting_is_a_tag_because_params_never_change(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _work(config)
    longer = config.model_copy(
        update={"train": config.train.model_copy(update={"max_epochs": 2000})}
    )
    with Tracker(longer, RunFolder.of(longer)) as tracker:
        tracker.log_params()
    _, runs = _runs(config)
    assert runs[0].data.params["train.max_epochs"] == "1000"
    assert runs[0].data.tags["changed.train.max_epochs"] == "2000"


def test_a_failed_stage_is_a_failed_run(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with pytest.raises(KeyboardInterrupt), Tracker(config, RunFolder.of(config)):
        raise KeyboardInterrupt
    assert _runs(config)[1][0].info.status == "FAILED"


def test_log_false_writes_nothing_and_imports_no_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.config import *; "
        "from pipeline.folders import RunFolder; from pipeline.tracking import Tracker\n"
        "c = RunConfig(output_dir=Path(sys.argv[1]), tracking=TrackingConfig(log=False))\n"
        "with Tracker(c, RunFolder.of(c)) as t: t.log_params(); t.log_metrics({'a': 1.0})\n"
        "assert not {'mlflow', 'torch', 'ray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
    assert not (tmp_path / "run").exists()


def test_passwords_reach_neither_params_nor_files_nor_messages(tmp_path: Path, capfd: Any) -> None:
    config = _config(tmp_path, tracking_uri="http://ann:s3cret@127.0.0.1:9")
    _work(config)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if b"s3cret" in path.read_bytes()]
    assert "s3cret" not in capfd.readouterr().err
    assert "s3cret" not in ui_command(config)


def test_the_command_that_opens_mlflow_names_this_runs_store(tmp_path: Path) -> None:
    config = _config(tmp_path / "a folder")
    words = shlex.split(ui_command(config))
    assert words[0] == sys.executable
    assert words[-1] == f"sqlite:///{tmp_path / 'a folder' / 'mlflow.db'}"
    server = _config(tmp_path, tracking_uri="https://mlflow.example.org")
    assert "https://mlflow.example.org/?workflowType=machine_learning" in ui_command(server)


def test_a_journal_that_is_cut_back_and_written_again_is_told_once(tmp_path: Path) -> None:
    folder = RunFolder.of(_config(tmp_path))
    follower = Follower(folder.metrics, {})
    assert list(follower.fresh()) == []
    _journal(folder, range(1, 11))
    assert [record["step"] for record in follower.fresh()] == list(range(1, 11))
    History(folder.metrics, 0).close()
    _journal(folder, range(1, 6))
    assert list(follower.fresh()) == []
    _journal(folder, range(6, 16))
    assert [record["step"] for record in follower.fresh()] == list(range(11, 16))
    with folder.metrics.open("a") as file:
        file.write('{"kind": "step", "st')
    assert list(follower.fresh()) == []
