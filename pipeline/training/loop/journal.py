"""The journal of a training: one JSON line a record, cut back to a saved position on resume."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import IO, Any

from lasaft.errors import DataError
from lasaft.files import open_own, read_steadily

# Kinds that depend on the clock, the machine or an interruption; every other record is a function
# of config and data.
_NEEDED = {"kind", "step", "epoch", "seconds", "values"}
CLOCK_KINDS = frozenset({"speed", "system", "health"})


def make_record(
    kind: str,
    *,
    step: int,
    epoch: int,
    seconds: float,
    values: dict[str, float],
    text: str | None = None,
    files: str | None = None,
) -> dict[str, Any]:
    """Return a record in the journal's form; numbers that JSON lacks become None.

    Args:
        step, epoch, seconds: when it was made.
        files: a folder beside the journal whose files belong to the record.
    """
    clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
    others = {"text": text, "files": files}
    return {
        "kind": kind, "step": step, "epoch": epoch, "seconds": round(seconds, 3), "values": clean,
        **{name: value for name, value in others.items() if value is not None},
    }  # fmt: skip


class History:
    """Append records to a journal file.

    Args:
        position: bytes to keep of what the file holds; the rest came after the saved state.

    Attributes:
        missing: how many bytes of those to keep the file has not, or not as whole lines.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open_own(path, "ab+")
        self._file.seek(0)
        # Where somebody has cut it, the position is in mid line, or beyond the end.
        whole = self._file.read(position).rfind(b"\n") + 1
        self.missing = position - whole
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; readers see it at once."""
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Return the file's length in bytes."""
        return self._file.tell()

    def sync(self) -> None:
        """Return when everything up to here has reached the disk; any thread may ask for it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the journal; nothing more is added."""
        self._file.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the records of a journal; a last line that is not whole yet is left out.

    Raises:
        DataError: a line is no record.
    """
    records = []
    for number, line in enumerate(
        read_steadily(path).split(b"\n")[:-1] if path.exists() else (), 1
    ):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not record.keys() >= _NEEDED:
                raise ValueError("it lacks what a record has")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not a record of training ({error})") from error
        records.append(record)
    return records
