"""MLflow gets every record, whatever happens to it; the work never waits for it."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lasaft
from jobs.cli import parse
from lasaft.checkpoint import save_checkpoint
from lasaft.config import ModelConfig
from lasaft.errors import ConfigError, StageError
from lasaft.network.model import LaSAFT
from pipeline.config import RunConfig, TrackingConfig
from pipeline.config.folders import RunFolder
from pipeline.tracking import Tracker, feeder, ui_command
from pipeline.tracking.address import store_problems, tracking_address
from pipeline.tracking.outbox import Follower, Outbox
from pipeline.tracking.registry import register
from pipeline.training.loop.journal import History, make_record
from tests.helpers import ROOT

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
    samples = folder.training / "samples" / "epoch=0000"
    samples.mkdir(parents=True, exist_ok=True)
    (samples / "vocals.flac").write_bytes(b"sound")
    sample = {"step": steps[-1], "epoch": 0, "seconds": 9.0, "values": {}}
    history.append(make_record("sample", **sample, files="samples/epoch=0000"))
    history.close()


@cache
def _new_database() -> bytes:
    """Return a database of MLflow without a run; to make one takes a second."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        logging.disable(logging.INFO)
        MlflowClient(f"sqlite:///{file}").search_experiments()
        logging.disable(logging.NOTSET)
        return file.read_bytes()


def _work(config: RunConfig, steps: range = range(1, 31), *, prepared: bool = True) -> None:
    """Do what a stage does with its tracker; ``prepared``: there is a database without a run."""
    folder = RunFolder.of(config)
    folder.report.mkdir(parents=True, exist_ok=True)
    if prepared and config.tracking.tracking_uri is None and not folder.database.exists():
        folder.database.write_bytes(_new_database())
    (folder.report / "index.html").write_text("<p>report</p>")
    with Tracker(config, folder) as tracker:
        tracker.log_params()
        tracker.follow(folder.metrics)
        _journal(folder, steps)
        tracker.log_metrics({"test/vocals/SDR": 5.5, "test/drums/SDR": float("inf")}, step=2)
        tracker.log_artifact(folder.report, "report")
        tracker.log_table("scores", ["source", "SDR"], [["vocals", 5.5], ["drums", None]])
        tracker.set_tags({"data": "abc"})
        for name, level in (("net", 5.5), ("mixture", -6.0)):
            system = tracker.child(name)
            system.log_params({"overlap_ratio": 0.5, "model": {"n_fft": 512}})
            system.log_dataset("MUSDB18", "ab" * 32, "test")
            system.log_metrics({"test/vocals/SDR": level})
            system.log_table("scores", ["track", "SDR"], [["a song", level]])
            system.finish()
        tracker.log_dataset("musdb18hq", "d" * 64, "train", "/data/shards")


def _runs(config: RunConfig) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{RunFolder.of(config).root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(config.tracking.experiment_name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return client, [run for run in runs if "mlflow.parentRunId" not in run.data.tags]


def _assert_nested(client: Any, parent: Any) -> None:
    """Each system has one run of its own, with its own figures, below the folder's."""
    nested = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert {run.info.run_name: run.data.metrics for run in nested} == {
        "net": {"test/vocals/SDR": 5.5},
        "mixture": {"test/vocals/SDR": -6.0},
    }
    for run in nested:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.source.name"] == parent.data.tags["mlflow.source.name"]
        assert run.data.params == {"overlap_ratio": "0.5", "model.n_fft": "512"}
        (songs,) = run.inputs.dataset_inputs
        assert (songs.dataset.name, songs.dataset.digest) == ("MUSDB18", "ab" * 18)
        assert [(tag.key, tag.value) for tag in songs.tags] == [("mlflow.data.context", "test")]
        table = Path(client.download_artifacts(run.info.run_id, "scores.json")).read_text()
        assert json.loads(table)["data"] == [["a song", run.data.metrics["test/vocals/SDR"]]]


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
    assert artifacts == {"report", "scores.json", "samples"}
    samples = client.list_artifacts(run.info.run_id, "samples/epoch=0000")
    assert [item.path for item in samples] == ["samples/epoch=0000/vocals.flac"]
    assert run.data.tags["data"] == "abc"
    assert run.data.tags["mlflow.source.name"].startswith("jobs/")
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("musdb18hq", "d" * 36)
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "train")]
    assert json.loads(used.dataset.source) == {"uri": "/data/shards"}
    logged = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert logged == [{"path": "scores.json", "type": "table"}]
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "scores.json")).read_text())
    assert table == {"columns": ["source", "SDR"], "data": [["vocals", 5.5], ["drums", None]]}
    _assert_nested(client, run)


def test_everything_a_stage_says_is_in_one_run(tmp_path: Path, capfd: Any) -> None:
    config = _config(tmp_path, run_id="my run")
    _work(config, prepared=False)
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


def test_a_server_that_never_answers_slows_nothing_and_loses_nothing(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections to a stopped process (SIGSTOP) are taken by the kernel and never answered."""
    monkeypatch.setattr(feeder, "_LAST_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        config = _config(tmp_path, tracking_uri=f"http://127.0.0.1:{stopped.getsockname()[1]}")
        with Tracker(config, RunFolder.of(config)) as tracker:
            time.sleep(0.1)  # the feeder hangs in its first call from now on
            start = time.monotonic()
            for step in range(100):
                tracker.log_metrics({"a": 1.0}, step)
            # 100 lines on a disk: what any call to the server would make impossible.
            assert time.monotonic() - start < 2
    assert "the next command on this folder sends them" in capfd.readouterr().err
    for thread in threading.enumerate():
        if thread.name == "mlflow":  # ends with its command, which a test's process is not
            thread.join(60)
    answering = _config(tmp_path)
    _work(answering)
    _assert_complete(answering)
    client, runs = _runs(answering)
    told = client.get_metric_history(runs[0].info.run_id, "a")
    assert [metric.step for metric in told] == list(range(100))


def test_a_trained_network_is_a_registered_model_without_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own code
        import mlflow.pyfunc
        from mlflow.models import Model

    config = _config(tmp_path)
    folder = RunFolder.of(config)
    model = LaSAFT(ModelConfig(n_fft=256, hop_length=128, n_blocks=3, internal_channels=4))
    record = {"data_hash": "abc", "git_commit": "def", "epoch": 3, "metrics": {"valid/loss": 0.5}}
    save_checkpoint(folder.checkpoint, model.state_dict(), model.config, record)
    for _ in range(2):  # a checkpoint that is there is no new version
        with Tracker(config, folder) as tracker:
            tracker.log_model(folder.checkpoint, "all/songs")
    assert capfd.readouterr() == ("", "")
    client, runs = _runs(config)
    (version,) = client.search_model_versions("name = 'all_songs'")
    assert version.run_id == runs[0].info.run_id
    assert (
        version.tags["checkpoint_hash"] == lasaft.checkpoint.load_checkpoint(folder.checkpoint).hash
    )
    assert (version.tags["data_hash"], version.tags["git_commit"]) == ("abc", "def")
    packed = Path(client.download_artifacts(version.run_id, "model"))
    files = {path.name for path in packed.rglob("*") if path.is_file()}
    assert {"MLmodel", "weights.safetensors", "config.json", "pyfunc.py"} <= files
    from mlflow.models import Model

    (listed,) = json.loads(runs[0].data.tags["mlflow.log-model.history"])
    assert (listed["artifact_path"], listed["run_id"]) == ("model", version.run_id)
    described = Model.load(str(packed))
    assert described.signature is not None
    example = described.load_input_example(str(packed))
    assert isinstance(example, np.ndarray)
    assert example.shape == (2, 1000)
    assert version.tags["card.weights_license"] == "not stated"
    assert not {name for name in files if name.endswith((".pkl", ".pth", ".pt", ".bin"))}
    described = [path.read_text() for path in packed.glob("*") if path.is_file()]
    assert not [text for text in described if str(tmp_path) in text or str(ROOT) in text]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model(f"models:/all_songs/{version.version}")
    mixture = np.random.default_rng(0).standard_normal((2, 9000)).astype(np.float32)
    ours = lasaft.Separator(lasaft.load_model(folder.checkpoint)).separate(mixture, 44100)
    assert set(loaded.predict(example)) == {"vocals", "drums", "bass", "other"}
    theirs = loaded.predict(mixture)
    assert theirs.keys() == ours.keys()
    for name, stem in ours.items():
        np.testing.assert_array_equal(theirs[name], np.asarray(stem))


def test_a_model_that_was_cut_off_goes_on_with_the_files_that_are_missing(tmp_path: Path) -> None:
    model = LaSAFT(ModelConfig(n_fft=256, hop_length=128, n_blocks=3, internal_channels=4))
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(checkpoint, model.state_dict(), model.config, {})
    config = _config(tmp_path)
    _work(config)
    client, (run,) = _runs(config)
    files = register(client, run.info.run_id, checkpoint, "net")
    arrived = set(islice(files, 5))
    del files
    assert not client.search_model_versions("name = 'net'")
    rest = list(register(client, run.info.run_id, checkpoint, "net", arrived))
    assert not arrived & set(rest)
    assert len(client.search_model_versions("name = 'net'")) == 1
    packed = Path(client.download_artifacts(run.info.run_id, "model"))
    assert len([path for path in packed.rglob("*") if path.is_file()]) == 5 + len(rest)
    assert lasaft.load_model(packed / "data" / "checkpoint").config == model.config


@pytest.mark.parametrize("cut", [1, 20, 75])
def test_a_torn_end_of_the_journal_is_mended(tmp_path: Path, capfd: Any, cut: int) -> None:
    config = _config(tmp_path)
    _work(config)
    journal = RunFolder.of(config).tracking / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    _work(config, range(31, 41))
    assert capfd.readouterr().err == ""
    _assert_complete(config, 40)


def test_a_damaged_line_of_the_journal_is_told_once_and_the_rest_arrives(
    tmp_path: Path, capfd: Any
) -> None:
    config = _config(tmp_path, tracking_uri=DEAD)
    _work(config)
    journal = RunFolder.of(config).tracking / "journal.jsonl"
    first, *rest = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([first, b'{"kind": "par\xff', *rest]))
    capfd.readouterr()
    own = _config(tmp_path)
    for complaints in (1, 0):
        with Tracker(own, RunFolder.of(own)):
            pass
        assert capfd.readouterr().err.count("a damaged line of") == complaints
    _assert_complete(own)


def test_a_changed_bit_of_the_journal_never_passes_for_an_entry(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "sqlite:///x")
    outbox.add("status", status="RUNNING")
    outbox.add("metrics", values={"vocals/SDR": 5.5}, step=2)
    journal = tmp_path / "journal.jsonl"
    sound, entries = journal.read_bytes(), outbox.entries()
    for bit in range(8 * len(sound)):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        journal.write_bytes(data)
        found = outbox.entries()
        assert all(each in entries for each in found if each["kind"] != "damaged")
        assert found != entries


def test_what_is_said_after_a_power_cut_arrives(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _work(config)
    journal = RunFolder.of(config).tracking / "journal.jsonl"
    # sent.json was on the disk, the journal's last entries were not.
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-3]))
    with Tracker(config, RunFolder.of(config)) as tracker:
        tracker.set_tags({"later": "yes"})
    _assert_complete(config)
    assert _runs(config)[1][0].data.tags["later"] == "yes"


def test_a_full_disk_is_an_error_that_names_the_journal(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "tracking", "sqlite:///x")
    outbox.add("tags", values={"a": "b"})
    whole = (tmp_path / "tracking" / "journal.jsonl").read_bytes()
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from pipeline.tracking.outbox import Outbox\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "Outbox(Path(sys.argv[1]), 'sqlite:///x').add('tags', values={'long': 'x' * 1000})\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "tracking"), str(len(whole) + 100)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "journal.jsonl" in done.stderr.splitlines()[-1]
    assert (tmp_path / "tracking" / "journal.jsonl").read_bytes() == whole


def test_a_refused_command_changes_no_finished_run(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _work(config)
    with pytest.raises(ConfigError), Tracker(config, RunFolder.of(config)):
        raise ConfigError("lr: got -1")
    _assert_complete(config)


@pytest.mark.parametrize("name", ["run%20one", "100%", "what?"])
def test_a_folder_that_cannot_hold_the_database_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"output_dir: got .*, allowed: a path"):
        parse(["--output_dir", str(tmp_path / name)], "run")
    (problem,) = store_problems(_config(tmp_path / name))
    assert str(tmp_path / name) in str(problem)
    assert not list(store_problems(_config(tmp_path / name, log=False)))
    assert not list(store_problems(_config(tmp_path / name, tracking_uri=DEAD)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert list(store_problems(_config(tmp_path / name)))


@pytest.mark.parametrize(
    "address",
    [
        "./mlruns", "/data/mlruns", "file:///data/mlruns", "127.0.0.1:5000", "localhost", "http://",
        "foo://bar", "sqlite:relative.db", "sqlite://", "postgres://host/base", "http://[::1",
        "http://h:99999", "http://h:abc", "https://h:0/x", "http://a b", "mysql://h:99999/b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("by", ["option", "environment"])
def test_an_address_that_mlflow_does_not_take_is_refused(
    tmp_path: Path, address: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address if by == "environment" else DEAD)
    words = ["--tracking_uri", address] if by == "option" else []
    origin = "" if by == "option" else " of MLFLOW_TRACKING_URI"
    reason = re.escape(f"tracking_uri: got {address!r}{origin}, allowed: http://HOST:PORT")
    with pytest.raises(ConfigError, match=reason):
        parse(["--preset", "demo", "--output_dir", str(tmp_path), *words], "run")
    if by == "environment":
        parse(["--preset", "demo", "--output_dir", str(tmp_path), "--log", "False"], "run")


@pytest.mark.parametrize("start", ["", "http:", "//", "ftp://"])
def test_a_password_in_a_refused_address_is_not_repeated(tmp_path: Path, start: str) -> None:
    words = ["--tracking_uri", f"{start}ann:s3cret@host:5000"]
    with pytest.raises(ConfigError, match=r"tracking_uri: got '\S*host:5000', allowed") as caught:
        parse(["--preset", "demo", "--output_dir", str(tmp_path), *words], "run")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://host", "https://a:b@host:5000/mlflow/", "sqlite:////tmp/x.db", "sqlite:///x.db",
        "postgresql://u:p@host/base", "mysql+pymysql://host/base", "databricks",
        "databricks://profile",
    ],
)  # fmt: skip
def test_an_address_that_mlflow_takes_is_not_refused(tmp_path: Path, address: str) -> None:
    assert not list(store_problems(_config(tmp_path, tracking_uri=address)))


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


def test_a_command_that_fails_after_it_began_is_a_failed_run(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _work(config)
    with pytest.raises(ConfigError), Tracker(config, RunFolder.of(config)) as tracker:
        tracker.log_params()
        raise ConfigError("world_size: got 2, but there is room for 1")
    assert _runs(config)[1][0].info.status == "FAILED"


def test_a_refused_command_ends_a_run_that_was_killed(tmp_path: Path) -> None:
    config = _config(tmp_path)
    Outbox(RunFolder.of(config).tracking, tracking_address(config)).add("status", status="RUNNING")
    with pytest.raises(ConfigError), Tracker(config, RunFolder.of(config)):
        raise ConfigError("lr: got -1")
    assert _runs(config)[1][0].info.status == "FAILED"


def test_a_failed_stage_is_a_failed_run(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with pytest.raises(KeyboardInterrupt), Tracker(config, RunFolder.of(config)):
        raise KeyboardInterrupt
    assert _runs(config)[1][0].info.status == "FAILED"


def test_log_false_writes_nothing_and_imports_no_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.config import *; "
        "from pipeline.config.folders import RunFolder; from pipeline.tracking import Tracker\n"
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
    for address in ("https://mlflow.example.org", "https://mlflow.example.org/"):
        server = _config(tmp_path, tracking_uri=address)
        assert "https://mlflow.example.org/?workflowType=machine_learning" in ui_command(server)


def _steps(follower: Follower) -> list[int]:
    return [record["step"] for record in follower.fresh() if record["kind"] == "step"]


def test_a_journal_that_is_cut_back_and_written_again_is_told_once(tmp_path: Path) -> None:
    folder = RunFolder.of(_config(tmp_path))
    follower = Follower(folder.metrics, {})
    assert list(follower.fresh()) == []
    _journal(folder, range(1, 11))
    assert _steps(follower) == list(range(1, 11))
    History(folder.metrics, 0).close()
    _journal(folder, range(1, 6))
    assert list(follower.fresh()) == []
    _journal(folder, range(6, 16))
    assert _steps(follower) == list(range(11, 16))
    with folder.metrics.open("a") as file:
        file.write('{"kind": "step", "st')
    assert list(follower.fresh()) == []
    # Cut back and already longer than before when it is looked at again, with other times.
    length = folder.metrics.stat().st_size
    history = History(folder.metrics, 0)
    for step in range(1, 41):
        record = make_record("step", step=step, epoch=0, seconds=step / 7, values={})
        history.append(record)
    history.close()
    assert folder.metrics.stat().st_size > length
    assert _steps(follower) == list(range(16, 41))


def test_the_files_of_a_folder_that_was_moved_arrive(tmp_path: Path, capfd: Any) -> None:
    config = _config(tmp_path / "here", tracking_uri=DEAD)
    _work(config)
    capfd.readouterr()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = _config(tmp_path / "there")
    with Tracker(moved, RunFolder.of(moved)):
        pass
    assert capfd.readouterr().err == ""
    _assert_complete(moved)


def test_a_copy_of_a_folder_has_files_and_a_run_of_its_own(tmp_path: Path, capfd: Any) -> None:
    original = _config(tmp_path / "a")
    _work(original)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = _config(tmp_path / "b")
    folder = RunFolder.of(copy)
    (folder.report / "index.html").write_text("<p>of the copy</p>")
    with Tracker(copy, folder) as tracker:
        tracker.log_artifact(folder.report, "report")
    assert capfd.readouterr().err == ""
    pages = {path.read_text() for path in (tmp_path / "a" / "mlartifacts").rglob("index.html")}
    assert pages == {"<p>report</p>"}
    pages = {path.read_text() for path in (tmp_path / "b" / "mlartifacts").rglob("index.html")}
    assert "<p>of the copy</p>" in pages
    own = _config(
        tmp_path / "b", experiment_name=f"{copy.tracking.experiment_name} in {folder.root}"
    )
    _assert_complete(own)


def test_sources_may_be_called_what_mlflow_calls_nothing(tmp_path: Path, capfd: Any) -> None:
    config = _config(tmp_path)
    folder = RunFolder.of(config)
    history = History(folder.metrics)
    values = {"valid/lead+vox/SDR": 4.5, "valid/drums/SDR": 3.5}
    history.append(make_record("epoch", step=7, epoch=0, seconds=1.0, values=values))
    history.close()
    with Tracker(config, folder) as tracker:
        tracker.follow(folder.metrics)
        tracker.log_metrics({"test/lead+vox/SDR": 5.5})
    assert capfd.readouterr().err == ""
    (run,) = _runs(config)[1]
    assert run.data.metrics == {
        "valid/lead_vox/SDR": 4.5, "valid/drums/SDR": 3.5, "test/lead_vox/SDR": 5.5,
    }  # fmt: skip


def test_a_store_that_was_lost_is_told_everything_again(tmp_path: Path, capfd: Any) -> None:
    config = _config(tmp_path)
    # In a process of its own: MLflow keeps a database open, also one that is no longer there.
    command = multiprocessing.get_context("spawn").Process(target=_work, args=(config,))
    command.start()
    command.join()
    (tmp_path / "mlflow.db").unlink()
    with Tracker(config, RunFolder.of(config)):
        pass
    assert capfd.readouterr().err == ""
    _assert_complete(config)


def test_nothing_is_lost_by_a_run_that_was_deleted_and_restored(tmp_path: Path, capfd: Any) -> None:
    config = _config(tmp_path)
    _work(config)
    client, (run,) = _runs(config)
    client.delete_run(run.info.run_id)
    _work(config, range(31, 41))
    assert "was deleted there" in capfd.readouterr().err
    client.restore_run(run.info.run_id)
    with Tracker(config, RunFolder.of(config)):
        pass
    _assert_complete(config, 40)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"destination": 1}'])
def test_a_damaged_note_of_what_was_sent_sends_it_again(tmp_path: Path, content: str) -> None:
    config = _config(tmp_path)
    _work(config)
    (RunFolder.of(config).tracking / "sent.json").write_text(content)
    with Tracker(config, RunFolder.of(config)):
        pass
    _assert_complete(config)


def test_a_journal_that_is_full_does_not_hide_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    config = _config(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "journal.jsonl")

    with (
        pytest.raises(StageError, match="what has been saved is kept"),
        Tracker(config, RunFolder.of(config)),
    ):
        monkeypatch.setattr(Outbox, "add", full)
        raise StageError("training: what has been saved is kept")
    assert "does not learn that the run is FAILED: " in capfd.readouterr().err
