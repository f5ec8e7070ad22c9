"""Where MLflow's records of a run go, and how a person opens them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from lasaft.errors import Problem
from pipeline.config import RunConfig
from pipeline.config.addresses import impossible, shown
from pipeline.config.folders import RunFolder

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_ALLOWED = (
    "http://HOST:PORT or https://HOST of an MLflow server, sqlite:///FILE, or the address of a "
    "database (postgresql://, mysql://, mssql://)"
)


def tracking_address(config: RunConfig) -> str:
    """Return where MLflow's records go: an address, or a database in the run's folder."""
    given = config.tracking.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or own_store(RunFolder.of(config))


def own_store(folder: RunFolder) -> str:
    """Return the address of the database in a run's folder."""
    return f"sqlite:///{folder.database}"


def store_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield why MLflow would take no records at the run's address."""
    folder = RunFolder.of(config)
    address = tracking_address(config)
    if config.tracking.log and (impossible(address) or not _known(address)):
        origin = "" if config.tracking.tracking_uri else " of MLFLOW_TRACKING_URI"
        # Without a right scheme nothing says where a password ends: before the @, if there is one.
        text = shown(address).rpartition("@")[2]
        yield Problem("tracking_uri", f"{text!r}{origin}", _ALLOWED)
    own = address == own_store(folder)
    if config.tracking.log and own and {"%", "?"} & set(str(folder.root)):
        allowed = (
            "a path without % and ?, which MLflow's database in it cannot have (or a tracking_uri "
            "elsewhere, or log False)"
        )
        yield Problem("output_dir", str(folder.root), allowed, others=("tracking_uri", "log"))


def _known(address: str) -> bool:
    """Return whether MLflow keeps records at such an address; plain folders it takes no more."""
    parts = urlsplit(shown(address))
    scheme = parts.scheme.partition("+")[0]
    if scheme in ("http", "https"):
        return bool(parts.hostname)
    if scheme in _DATABASES:
        return "://" in address and bool(parts.path.strip("/"))
    known = {"databricks", *(one.name for one in entry_points(group="mlflow.tracking_store"))}
    return address == "databricks" or scheme in known


def ui_command(config: RunConfig) -> str:
    """Return the one command that opens MLflow for this run, for a shell."""
    address = tracking_address(config)
    if address.startswith(("http://", "https://")):
        page = shlex.quote(shown(address).rstrip("/") + "/?workflowType=machine_learning")
        return f"{shlex.quote(sys.executable)} -m webbrowser {page}"
    words = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1"]
    return shlex.join([*words, "--backend-store-uri", shown(address)])
