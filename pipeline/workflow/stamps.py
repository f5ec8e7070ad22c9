"""The stamp of a workflow step and its outputs: written, moved aside, brought back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasaft.files import atomic_write_json

Stamp = Mapping[str, Any]

_KEY = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class StepPlace:
    """Where a step keeps its stamp and outputs, and where it puts outputs that are replaced.

    A stamp has a ``key`` and a ``state``: started, done, leaving or arriving. The last two mark a
    move that a crash may have cut short; :meth:`settle` finishes it.
    """

    root: Path
    name: str
    outputs: Sequence[Path]

    @property
    def file(self) -> Path:
        """The stamp of the outputs that are in place."""
        return self.root / "steps" / f"{self.name}.json"

    def kept(self, key: str) -> Path:
        """The folder for the outputs of ``key`` while others are in place."""
        return self.root / "previous" / f"{self.name}-{key[:12]}"

    def settle(self) -> Stamp | None:
        """Finish a move that was cut short; return the stamp in place, or None."""
        stamp = read_stamp(self.file)
        if stamp is not None and stamp["state"] == "arriving":
            return self.arrive(stamp["key"])
        if stamp is not None and stamp["state"] == "leaving":
            self.leave(stamp)
            return None
        return stamp

    def leave(self, stamp: Stamp) -> None:
        """Move the outputs of ``stamp`` aside, and the stamp with them."""
        original = stamp.get("was", stamp)
        if stamp is original and not any(output.exists() for output in self.outputs):
            self.file.unlink()  # nothing was made yet, or the step keeps its files in place
            return
        aside = self.kept(original["key"])
        atomic_write_json(aside / "stamp.json", original)
        atomic_write_json(self.file, {**original, "state": "leaving", "was": original})
        for output in self.outputs:
            if output.exists():
                output.replace(aside / output.name)
        self.file.unlink()

    def arrive(self, key: str) -> Stamp | None:
        """Bring back what was kept for ``key``; return its stamp, or None if nothing was."""
        kept = self.kept(key)
        original = read_stamp(kept / "stamp.json")
        if original is None:
            return None
        atomic_write_json(self.file, {**original, "state": "arriving"})
        for output in self.outputs:
            if (kept / output.name).exists():
                (kept / output.name).replace(output)
        self.write(original)
        shutil.rmtree(kept)
        return original

    def write(self, stamp: Stamp) -> None:
        """Put ``stamp`` in place."""
        atomic_write_json(self.file, stamp)


def read_stamp(path: Path) -> Stamp | None:
    """Return the stamp in ``path``; None where there is none, and a damaged one counts as none."""
    try:
        stamp = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return stamp if _is_whole(stamp) and _is_whole(stamp.get("was", stamp)) else None


def _is_whole(stamp: Any) -> bool:
    if not isinstance(stamp, dict) or not {"key", "state", "inputs"} <= stamp.keys():
        return False
    # The key becomes a part of a path.
    return isinstance(stamp["key"], str) and _KEY.fullmatch(stamp["key"]) is not None
