"""Where MLflow's records of a run go, and how a person opens them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

from lasaft.errors import Problem
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder


def tracking_address(config: RunConfig) -> str:
    """Return where MLflow's records go: an address, or a database in the run's folder."""
    given = config.tracking.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or own_store(RunFolder.of(config))


def own_store(folder: RunFolder) -> str:
    """Return the address of the database in a run's folder."""
    return f"sqlite:///{folder.database}"


def store_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield why there can be no database in the run's folder, if it is to be there."""
    folder = RunFolder.of(config)
    own = tracking_address(config) == own_store(folder)
    if config.tracking.log and own and {"%", "?"} & set(str(folder.root)):
        allowed = (
            "a path without % and ?, which MLflow's database in it cannot have (or a tracking_uri "
            "elsewhere, or log False)"
        )
        yield Problem("output_dir", str(folder.root), allowed, others=("tracking_uri", "log"))


def ui_command(config: RunConfig) -> str:
    """Return the one command that opens MLflow for this run, for a shell."""
    address = tracking_address(config)
    if address.startswith(("http://", "https://")):
        page = shlex.quote(without_password(address) + "/?workflowType=machine_learning")
        return f"{shlex.quote(sys.executable)} -m webbrowser {page}"
    words = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1"]
    return shlex.join([*words, "--backend-store-uri", address])


def without_password(address: str) -> str:
    """Return ``address`` without the name and password that it may hold."""
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
