"""What is to be told to a tracking server: journals on disk, and how far they have been told."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lasaft.files import atomic_write_json
from pipeline.training.history import read_history


class Outbox:
    """A folder with the entries of a run, in order; nothing is ever taken out of it.

    Args:
        folder: journal.jsonl (the entries) and sent.json (what has been delivered).
        destination: address of the server; another address starts from the first entry again.
    """

    def __init__(self, folder: Path, destination: str) -> None:
        self.folder = folder
        self._journal = folder / "journal.jsonl"
        self._sent_file = folder / "sent.json"
        # Hashed: an address can hold a password.
        self._destination = hashlib.sha256(destination.encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, kind: str, **content: Any) -> None:
        """Append one entry; it is on its way to the disk when this returns."""
        entry = {"kind": kind, "milliseconds": int(time.time() * 1000), **content}
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """Return every entry that is whole."""
        return read_history(self._journal)

    def sent(self) -> dict[str, Any]:
        """Return what has been delivered: ``entries`` (a count), ``steps`` and the ``run``."""
        if self._sent_file.exists():
            sent = json.loads(self._sent_file.read_bytes())
            if sent["destination"] == self._destination:
                return sent
        return {"destination": self._destination, "entries": 0, "steps": {}, "run": None}

    def mark(self, sent: dict[str, Any]) -> None:
        """Remember what has been delivered."""
        atomic_write_json(self._sent_file, sent)


class Follower:
    """Reads a journal of metrics that another process writes.

    It may be cut back and written again, or replaced by the journal of another training: where the
    last line that was read is not in its place any more, everything is read anew.

    Args:
        path: the JSONL file.
        steps: for each kind of record the last step that was delivered; records up to there are
            skipped. It is not changed here.
    """

    def __init__(self, path: Path, steps: dict[str, int]) -> None:
        self.path = path
        self._steps = dict(steps)
        self._offset = 0
        self._last_line = b""

    def fresh(self) -> Iterator[dict[str, Any]]:
        """Yield the whole records that have come since the last call."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self._offset - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:
                # Cut back since, and maybe longer again: what was read is no longer there.
                self._offset, self._last_line = file.seek(0), b""
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.splitlines(keepends=True)
        self._last_line = lines[-1] if lines else self._last_line
        for line in lines:
            record = json.loads(line)
            if record["step"] > self._steps.get(record["kind"], -1):
                self._steps[record["kind"]] = record["step"]
                yield record
