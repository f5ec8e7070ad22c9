"""The thread that sends a run's outbox to MLflow."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lasaft.errors import LasaftError
from lasaft.files import atomic_write_json, open_own
from pipeline.cluster.locks import taken
from pipeline.config import RunConfig
from pipeline.config.addresses import shown
from pipeline.config.folders import RunFolder
from pipeline.tracking.address import tracking_address
from pipeline.tracking.mlflow_run import find_or_create, find_or_create_child, run_file
from pipeline.tracking.outbox import Follower, Outbox

if TYPE_CHECKING:
    from mlflow import MlflowClient

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 5.0
# How long the end of a stage may wait: for a server, and for a database file of our own, which
# is never down but needs some time to be made.
_LAST_SECONDS = 20.0
_LAST_SECONDS_FILE = 120.0
_PARENT_SECONDS = 0.2
_METRICS_A_CALL = 500  # the most that MLflow takes, as of parameters
_PARAMS_A_CALL = 100
_RECORDS_AT_ONCE = 100  # of a training's journal, after which is noted how far it has been sent
# The server has read the entry and will never take it; anything else is worth another try.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}
# Its names have letters, digits, and a few signs; a source may be called anything.
_UNKNOWN_TO_MLFLOW = re.compile(r"[^\w.\- :/]")
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_UV_AUTO_DETECT": "false",  # or it adds the files of a project in this folder to a model
    "GIT_PYTHON_REFRESH": "quiet",
}


class Feeder(threading.Thread):
    """Tells an outbox to MLflow; whatever goes wrong here stays here until the end."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, outbox: Outbox, parent: RunFolder | None = None
    ) -> None:
        super().__init__(name="mlflow", daemon=True)
        self._config, self._folder, self._parent, self._outbox = config, folder, parent, outbox
        self._closing = threading.Event()
        self._trouble = ""
        self._refused: list[str] = []
        self._done = self._run_is_known = False
        self._sent = outbox.sent()
        self._followers: dict[str, Follower] = {}
        self._children: dict[str, str] = {}

    def finish(self) -> str:
        """Tell the rest, for a limited time; return what a person should know, or ``""``."""
        self._closing.set()
        local = tracking_address(self._config).startswith("sqlite:")
        self.join(_LAST_SECONDS_FILE if local else _LAST_SECONDS)
        address = shown(tracking_address(self._config))
        if not self._done:
            reason = self._trouble or "it is slow"
            return (
                f"MLflow at {address} has not got all records ({reason}); they are kept in "
                f"{self._outbox.folder} and the next command on this folder sends them"
            )
        if self._refused:
            return f"MLflow at {address} lacks {len(self._refused)} records: {self._refused[0]}"
        return ""

    def run(self) -> None:
        """Deliver until told to finish, alone among all processes of this folder."""
        with open_own(self._outbox.folder / "lock", "a") as lock:
            while not taken(lock):
                # Another command on this folder feeds: it reads the same journal.
                if self._closing.wait(_POLL_SECONDS):
                    self._done = True
                    return
            self._sent = self._outbox.sent()
            # The run that this one belongs to makes the store.
            while self._parent is not None and not run_file(self._parent).exists():
                time.sleep(_PARENT_SECONDS)
            while True:
                last = self._closing.is_set()
                self._attempt()
                if last:
                    self._done = not self._trouble
                    return
                self._closing.wait(_RETRY_SECONDS if self._trouble else _POLL_SECONDS)

    def _attempt(self) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        # Only now: importing mlflow sets its level, and somebody may have imported it before.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        try:
            self._deliver()
            self._trouble = ""
        except (MlflowException, SQLAlchemyError, OSError, ImportError, LasaftError) as error:
            self._trouble = self._told(f"{type(error).__name__}: {error}")

    def _at(self, path: str) -> Path:
        """Return where a file of an entry is: absolute, or within the run's folder."""
        return self._folder.root / path

    def _told(self, text: str) -> str:
        """Return the first line of ``text``, without the password of the address."""
        return shown(text.splitlines()[0])[:200]

    def _deliver(self) -> None:
        """Send what is new; an exception leaves the rest for the next attempt."""
        entries = self._outbox.entries()
        self._require_run()
        for entry in entries:
            if entry["kind"] == "follow" and entry["path"] not in self._followers:
                steps = self._sent["steps"].get(entry["path"], {})
                self._followers[entry["path"]] = Follower(self._at(entry["path"]), steps)
        fresh = entries[self._sent["entries"] :]
        for entry in fresh:
            # The metrics that were followed up to there come before the end, and before a model,
            # which takes long.
            if entry["kind"] in ("status", "model"):
                self._send_followed()
            self._send(entry)
            self._sent["entries"] += 1
            self._outbox.mark(self._sent)
        self._send_followed()

    def _require_run(self) -> None:
        """Begin anew, once a command, where the store does not have this folder's run any more."""
        from mlflow.exceptions import MlflowException

        if self._run_is_known:
            return
        try:
            if self._sent["run"] is not None:
                run = self._client.get_run(self._sent["run"]["run_id"])
                if run.info.lifecycle_stage == "deleted":
                    raise MlflowException(f"the run {run.info.run_name} was deleted there")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._sent = self._outbox.nothing_sent()
        self._run_is_known = True

    def _send_followed(self) -> None:
        for path, follower in list(self._followers.items()):
            done = self._sent["steps"].setdefault(path, {})
            records = list(follower.fresh())
            try:
                for start in range(0, len(records), _RECORDS_AT_ONCE):
                    part = records[start : start + _RECORDS_AT_ONCE]
                    self._send_records(part)
                    for name in (record["files"] for record in part if "files" in record):
                        place = self._at(path).parent / name  # a folder beside the journal
                        self._send({"kind": "artifact", "path": str(place), "folder": name})
                    done |= {record["kind"]: record["step"] for record in part}
                    self._outbox.mark(self._sent)
            except BaseException:
                # What it has read and not told has to be read again.
                self._followers[path] = Follower(self._at(path), done)
                raise

    def _send_records(self, records: list[dict[str, Any]]) -> None:
        self._run()
        start = self._sent["run"]["milliseconds"]
        numbers = [
            (name, value, start + int(1000 * record["seconds"]), record["step"])
            for record in records
            for name, value in record["values"].items()
            if value is not None
        ]
        for first in range(0, len(numbers), _METRICS_A_CALL):
            self._send({"kind": "numbers", "numbers": numbers[first : first + _METRICS_A_CALL]})

    def _send(self, entry: dict[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        run = self._run_of(entry.get("child"))
        try:
            getattr(self, f"_send_{entry['kind']}")(run, entry)
        except MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            self._refused.append(self._told(f"{entry['kind']}: {error}"))

    def _send_follow(self, run: str, entry: dict[str, Any]) -> None:
        """Nothing to tell: the file's records are."""

    def _send_damaged(self, run: str, entry: dict[str, Any]) -> None:
        self._refused.append(f"a damaged line of {self._outbox.folder}: {entry['line']}")

    def _send_params(self, run: str, entry: dict[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        client = self._client
        known = client.get_run(run).data.params
        new = [Param(k, v) for k, v in entry["values"].items() if k not in known]
        for first in range(0, len(new), _PARAMS_A_CALL):
            client.log_batch(run, params=new[first : first + _PARAMS_A_CALL])
        # MLflow never changes a parameter: a run that went on with another value says so in tags.
        changed = [
            RunTag(f"changed.{name}", value)
            for name, value in entry["values"].items()
            if known.get(name, value) != value
        ]
        client.log_batch(run, tags=changed)

    def _send_metrics(self, run: str, entry: dict[str, Any]) -> None:
        when, step = entry["milliseconds"], entry["step"]
        numbers = [(name, value, when, step) for name, value in entry["values"].items()]
        self._send_numbers(run, {"numbers": numbers})

    def _send_numbers(self, run: str, entry: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(_UNKNOWN_TO_MLFLOW.sub("_", name), *rest) for name, *rest in entry["numbers"]
        ]
        self._client.log_batch(run, metrics=metrics)

    def _send_tags(self, run: str, entry: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run, tags=[RunTag(k, v) for k, v in entry["values"].items()])

    def _send_dataset(self, run: str, entry: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # 36 characters are the most that MLflow takes of a digest.
        source = json.dumps({"uri": entry.get("source", "")})
        songs = Dataset(entry["name"], entry["digest"][:36], "local", source)
        context = InputTag("mlflow.data.context", entry["split"])
        self._client.log_inputs(run, datasets=[DatasetInput(songs, [context])])

    def _send_artifact(self, run: str, entry: dict[str, Any]) -> None:
        path = self._at(entry["path"])
        if path.is_dir():
            self._client.log_artifacts(run, str(path), entry["folder"] or None)
        elif path.is_file():
            self._client.log_artifact(run, str(path), entry["folder"] or None)
        else:
            self._refused.append(f"{path} is no longer there")

    def _send_model(self, run: str, entry: dict[str, Any]) -> None:
        from pipeline.tracking.registry import register

        path = self._at(entry["path"])
        if path.is_dir():
            # Of a model that is cut off, what has arrived is not sent again.
            arrived = self._sent.setdefault("arrived", [])
            for file in register(self._client, run, path, entry["name"], frozenset(arrived)):
                arrived.append(file)
                self._outbox.mark(self._sent)
            self._sent["arrived"] = []
        else:
            self._refused.append(f"{path} is no longer there")

    def _send_table(self, run: str, entry: dict[str, Any]) -> None:
        # Not client.log_table: it adds to the table that is there, so a replay would double it.
        client, file = self._client, f"{entry['name']}.json"
        client.log_dict(run, {"columns": entry["columns"], "data": entry["rows"]}, file)
        tags = client.get_run(run).data.tags
        logged = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
        if {"path": file, "type": "table"} not in logged:
            logged.append({"path": file, "type": "table"})
            client.set_tag(run, "mlflow.loggedArtifacts", json.dumps(logged))

    def _send_status(self, run: str, entry: dict[str, Any]) -> None:
        if entry["status"] == "RUNNING":
            self._client.update_run(run, status="RUNNING")
        else:
            self._client.set_terminated(run, entry["status"], entry["milliseconds"])

    @cached_property
    def _client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(tracking_address(self._config))

    def _run_of(self, child: str | None) -> str:
        """Return the id of this folder's run, or of one that is nested under it."""
        run = self._run()
        if child is None:
            return run
        if child not in self._children:
            self._children[child] = find_or_create_child(
                self._client, self._sent["run"], self._folder, child
            )
        return self._children[child]

    def _run(self) -> str:
        """Return the id of this folder's MLflow run, which is made at the first call."""
        if self._sent["run"] is None:
            client, config = self._client, self._config
            self._sent["run"] = find_or_create(client, config, self._folder, self._parent)
            self._outbox.mark(self._sent)
            atomic_write_json(run_file(self._folder), self._sent["run"])
        return self._sent["run"]["run_id"]
