"""What is to be told to a tracking server: journals on disk, and how far they have been told."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lasaft.files import atomic_write_json, open_own, read_steadily
from pipeline.cluster import locks


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
        """Append one entry; it is on its way to the disk when this returns.

        Raises:
            OSError: it cannot be written; the journal is as it was.
        """
        entry = {"kind": kind, "milliseconds": int(time.time() * 1000), **content}
        line = _text({**entry, "crc": _sum(entry)}) + "\n"
        with open_own(self._journal, "ab+", buffering=0) as file:
            locks.wait_for(file)
            end = _drop_torn_end(file)
            try:
                if file.write(line.encode()) < len(line.encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                file.truncate(end)
                raise OSError(error.errno, error.strerror, str(self._journal)) from error

    def entries(self) -> list[dict[str, Any]]:
        """Return every entry that is whole; one that a damaged disk has spoilt is ``damaged``."""
        if not self._journal.exists():
            return []
        return [_entry(line) for line in read_steadily(self._journal).split(b"\n")[:-1]]

    def mend(self) -> list[dict[str, Any]]:
        """Note as delivered no more entries than there are, and return them.

        A power cut can take the last ones.
        """
        sent, entries = self.sent(), self.entries()
        if sent["entries"] > len(entries):
            self.mark(sent | {"entries": len(entries)})
        return entries

    def sent(self) -> dict[str, Any]:
        """Return what has been delivered: ``entries`` (a count), ``steps`` and the ``run``.

        A file that is damaged says nothing: what is told twice is there once.
        """
        nothing = self.nothing_sent()
        try:
            sent = json.loads(read_steadily(self._sent_file))
        except (FileNotFoundError, ValueError, RecursionError):
            return nothing
        if not isinstance(sent, dict) or not nothing.keys() <= sent.keys():
            return nothing
        return sent if sent["destination"] == self._destination else nothing

    def nothing_sent(self) -> dict[str, Any]:
        """Return what :meth:`sent` returns before anything has been delivered."""
        return {"destination": self._destination, "entries": 0, "steps": {}, "run": None}

    def mark(self, sent: dict[str, Any]) -> None:
        """Remember what has been delivered."""
        atomic_write_json(self._sent_file, sent)


def _drop_torn_end(file: IO[bytes]) -> int:
    """Cut off a last line that a crash or a full disk has left unfinished; return the new end."""
    file.seek(0)
    data = file.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        file.truncate(whole)
    return whole


def _text(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False)


def _sum(entry: dict[str, Any]) -> int:
    return zlib.crc32(_text(entry).encode())


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if entry.pop("crc") == _sum(entry):
            return entry
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # whatever it is now, it is not what was written
    return {"kind": "damaged", "line": line[:80].decode(errors="replace")}


def _is_record(record: Any) -> bool:
    """Whether a line of a training's journal has what is read of it here."""
    if not isinstance(record, dict):
        return False
    kinds = {"kind": str, "step": int, "seconds": (int, float), "values": dict}
    return all(isinstance(record.get(name), kind) for name, kind in kinds.items())


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
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_record(record) and record["step"] > self._steps.get(record["kind"], -1):
                self._steps[record["kind"]] = record["step"]
                yield record
