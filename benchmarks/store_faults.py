"""A run in a bucket whose store fails for a minute in each stage, beside an undisturbed one.

    python -m benchmarks.store_faults [--seconds 60] [--faults busy cut] [--stages train]

Each run is ``jobs.run`` against an S3-like server on this machine. From the moment that a stage
begins, the server answers 503, or slowly, or not at all, or that the credentials have expired, or
breaks off every third upload in its middle, or lists what is new some seconds late. A run has to
end by itself, with the scores and the model of a run in a folder that nothing has disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from moto.moto_server.werkzeug_app import DomainDispatcherApplication as Application
from pyarrow import fs

from benchmarks.measure import Table
from tests.helpers import ROOT
from tests.helpers.object_store import address, late_listings, object_store

_NETWORK = [
    "--preset", "demo", "--synthetic_train", "2", "--synthetic_valid", "1", "--synthetic_test", "1",
    "--synthetic_seconds", "4", "--steps_per_epoch", "30", "--max_epochs", "3", "--num_frame", "16",
    "--n_blocks", "3", "--internal_channels", "4", "--n_internal_layers", "1", "--num_tdfs", "2",
    "--dk", "4", "--num_cpus", "1", "--json",
]  # fmt: skip
STAGES = ("songs", "preprocess", "train", "evaluate", "report")
_SLOW_SECONDS = 2.0
_CUT_ONE_OF = 3
_LATE_SECONDS = 5.0


class Faults:
    """What is wrong with the servers of this process until ``end``; patches their application."""

    def __init__(self) -> None:
        self.kind, self.end, self.met, self._puts = "", 0.0, 0, 0
        self._answer = Application.__call__

    def begin(self, kind: str, seconds: float) -> None:
        """Let a fault be there for a while."""
        self.kind, self.end = kind, time.monotonic() + seconds

    def hides(self, age: float) -> bool:
        """Return whether an object of this age, in seconds, is left out of a list."""
        hidden = self.kind == "late" and time.monotonic() < self.end and age < _LATE_SECONDS
        self.met += hidden
        return hidden

    def __call__(self, app: Application, environ: dict[str, Any], start: Any) -> Any:
        """Answer a request, or fail to."""
        left = self.end - time.monotonic()
        if left <= 0 or self.kind == "late":
            return self._answer(app, environ, start)
        if self.kind == "cut":
            self._puts += environ["REQUEST_METHOD"] == "PUT"
            if environ["REQUEST_METHOD"] != "PUT" or self._puts % _CUT_ONE_OF:
                return self._answer(app, environ, start)
        self.met += 1
        match self.kind:
            case "busy":
                start("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>too many requests</Message></Error>"]
            case "expired":
                start("400 Bad Request", [("Content-Type", "application/xml")])
                return [b"<Error><Code>ExpiredToken</Code><Message>it expired</Message></Error>"]
            case "slow":
                time.sleep(_SLOW_SECONDS)
                return self._answer(app, environ, start)
            case "silent":
                time.sleep(left)
            case "cut":
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 2) // 2)
        raise ConnectionResetError("a fault that was asked for")


def run(place: str, cache: Path, on_stage: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """Do a run; return its result, and its last words where it failed.

    Args:
        on_stage: called when a stage begins.
    """
    command = [sys.executable, "-m", "jobs.run", *_NETWORK, "--output_dir", place]
    settings = {**os.environ, "XDG_CACHE_HOME": str(cache), "MLFLOW_TRACKING_URI": ""}
    said: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith("[") and line.endswith(" ...\n"):
                on_stage(line.split()[1])
        result = process.stdout.read()
    return (json.loads(result), "") if process.returncode == 0 else ({}, "".join(said[-3:]))


def model_hash(place: str | Path) -> str:
    """Return the sha256 of the weights that a run has trained."""
    system, path = fs.FileSystem.from_uri(place)
    with system.open_input_stream(f"{path}/checkpoint/weights.safetensors") as file:
        return hashlib.sha256(file.read()).hexdigest()


def main() -> int:
    """Do the runs, print the table, and return how many ended otherwise than the undisturbed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a fault is there")
    kinds = ("busy", "slow", "silent", "cut", "expired", "late")
    parser.add_argument("--faults", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    options = parser.parse_args()
    table, wrong = Table("fault", "stage", "requests hit", "seconds", "outcome"), 0
    faults = Faults()

    def answer(app: Application, environ: dict[str, Any], start: Any) -> Any:
        return faults(app, environ, start)

    patch = mock.patch.object(Application, "__call__", answer)
    late = late_listings(faults.hides)
    with tempfile.TemporaryDirectory() as name, object_store() as port, patch, late:
        root = Path(name)
        start = time.monotonic()
        plain, text = run(str(root / "run"), root / "cache", lambda stage: None)
        assert plain, text
        weights = model_hash(root / "run")
        table.row("none, in a folder", "", 0, f"{time.monotonic() - start:.0f}", "")
        for kind in options.faults:
            for stage in options.stages:
                place = address(f"{kind}-{stage}", port)
                faults.met = 0

                def on_stage(found: str, kind: str = kind, stage: str = stage) -> None:
                    if found == stage:
                        faults.begin(kind, options.seconds)

                start = time.monotonic()
                found, text = run(place, root / place.partition("?")[0][-30:], on_stage)
                seconds = time.monotonic() - start
                faults.end = 0.0
                alike = bool(found) and found["scores"] == plain["scores"]
                alike = alike and model_hash(place) == weights
                outcome = "alike" if alike else text or "other scores"
                table.row(kind, stage, faults.met, f"{seconds:.0f}", outcome)
                wrong += not alike
    return wrong


if __name__ == "__main__":
    sys.exit(main())
