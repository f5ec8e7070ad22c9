"""What a stage says about its run: settings, numbers, files and tables."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from lasaft.errors import ConfigError
from pipeline.config import RunConfig, without_secrets
from pipeline.config.folders import RunFolder
from pipeline.tracking.address import tracking_address
from pipeline.tracking.feeder import Feeder
from pipeline.tracking.outbox import Outbox

# MLflow takes longer values, but shows no table of them.
_LONGEST_PARAM = 500
_ENDS = ("FINISHED", "FAILED")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as ``model.n_fft: '2048'``; the tracking address is left out."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif name != "tracking_uri":
            text = value if isinstance(value, str) else json.dumps(value)
            flat[prefix + name] = text[:_LONGEST_PARAM]
    return flat


class Tracker:
    """Records one run in MLflow; use as a context manager around a stage.

    There is one MLflow run for each output folder, however many stages and attempts write to it.
    With ``tracking.log`` False nothing is written and MLflow is not imported.

    Args:
        config: the run's settings.
        folder: its folder.
        parent: folder of the run that this one is a part of, which has been entered before.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, parent: RunFolder | None = None
    ) -> None:
        self._config, self._folder, self._parent = config, folder, parent
        self._outbox: Outbox | None = None
        self._before: str | None = None
        self._said = False
        self._feeder: Feeder | None = None
        self._child: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._config.tracking.log:
            self._outbox = Outbox(self._folder.tracking, tracking_address(self._config))
            entries = self._outbox.mend()
            own = (each for each in entries if "child" not in each)
            said = [each["status"] for each in own if each["kind"] == "status"]
            self._before = said[-1] if said else None
            self._outbox.add("status", status="RUNNING")
            self._feeder = Feeder(self._config, self._folder, self._outbox, self._parent)
            self._feeder.start()
        return self

    def __exit__(self, kind: object, error: object, *_: object) -> None:
        if self._outbox is None or self._feeder is None:
            return
        status = "FINISHED" if error is None else "FAILED"
        if isinstance(error, ConfigError) and not self._said and self._before in _ENDS:
            status = self._before  # what was refused has changed nothing
        try:
            self._outbox.add("status", status=status)
        except OSError as problem:  # what the stage itself met is told, not this
            sys.stderr.write(f"MLflow does not learn that the run is {status}: {problem}\n")
        complaint = self._feeder.finish()
        if complaint:
            sys.stderr.write(f"{complaint}\n")

    def child(self, name: str) -> Tracker:
        """Return what records a run of its own, called ``name``, nested under this one.

        What it is told goes the way of this one's records; it is finished with :meth:`finish`.
        """
        tracker = Tracker(self._config, self._folder, self._parent)
        tracker._outbox, tracker._child = self._outbox, {"child": name}
        tracker._say("status", status="RUNNING")
        return tracker

    def finish(self) -> None:
        """Say that a child's run has ended."""
        self._say("status", status="FINISHED")

    def log_params(self, settings: Mapping[str, Any] | None = None) -> None:
        """Record settings as ``model.n_fft`` and so on: the whole configuration, or those given."""
        if settings is None:
            settings = without_secrets(self._config).model_dump(mode="json")
        self._say("params", values=flatten(settings))

    def log_dataset(self, name: str, digest: str, split: str, source: str = "") -> None:
        """Record the songs that a run is about, by the hash of their content.

        Args:
            name: what people call them.
            digest: the hash.
            split: of them, or what they are for.
            source: the folder or address where they lie.
        """
        self._say("dataset", name=name, digest=digest, split=split, source=source)

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers; what is not finite is left out."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        if finite:
            self._say("metrics", values=finite, step=step)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a file, or all files of a folder, under ``folder`` of the run's artifacts."""
        self._say("artifact", path=self._place(path), folder=folder)

    def log_model(self, checkpoint: Path, name: str) -> None:
        """Record a checkpoint as a version of the registered model ``name``, with its code."""
        self._say("model", path=self._place(checkpoint), name=name)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table as the artifact ``<name>.json``, which MLflow shows as one."""
        self._say("table", name=name, columns=list(columns), rows=[list(row) for row in rows])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record short texts about the run."""
        self._say("tags", values=dict(tags))

    def follow(self, journal: Path) -> None:
        """Record every metric of a training's journal, also what is written there later."""
        self._say("follow", path=self._place(journal))

    def _place(self, path: Path) -> str:
        """Return a path within the run's folder, which may be moved, or an absolute one."""
        path, root = path.absolute(), self._folder.root
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    def _say(self, kind: str, **content: Any) -> None:
        if self._outbox is not None:
            self._outbox.add(kind, **content, **self._child)
            self._said = True
