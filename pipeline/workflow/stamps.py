"""The stamp of a workflow step and its outputs: written, moved aside, brought back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lasaft.files import AWAY, atomic_write_json, read_steadily
from pipeline.cluster.run_store import PREVIOUS, STAMP

Stamp = Mapping[str, Any]

_KEY = re.compile("[0-9a-f]{64}")
_ASIDE = re.compile("[a-z]+-[0-9a-f]{12}(-[0-9]{1,6})?")


@dataclass(frozen=True)
class StepPlace:
    """Where a step keeps its stamp and outputs, and where it puts outputs that are replaced.

    A stamp has a ``key`` and a ``state``: started, done, leaving or arriving. The last two mark a
    move that a crash may have cut short; :meth:`settle` finishes it. Stamps that move say in
    ``aside`` which folder below ``previous/`` they move to or from.

    Args:
        root: the run's folder.
        name: of the step.
        outputs: files and folders that the step makes.
        recall: brings such a folder here, if it lies elsewhere; called before it moves back.
    """

    root: Path
    name: str
    outputs: Sequence[Path]
    recall: Callable[[str], None] = lambda name: None

    @property
    def file(self) -> Path:
        """The stamp of the outputs that are in place."""
        return self.root / "steps" / f"{self.name}.json"

    def settle(self) -> Stamp | None:
        """Finish a move that was cut short; return the stamp in place, or None."""
        stamp = read_stamp(self.file)
        if stamp is None or stamp["state"] not in ("leaving", "arriving"):
            return stamp
        aside = stamp.get("aside", self._stem(stamp))  # versions before 0.2 wrote none
        if stamp["state"] == "arriving":
            return self._arrive(aside)
        self._leave(stamp["was"], aside)
        return None

    def _stem(self, stamp: Stamp) -> str:
        return f"{self.name}-{stamp['key'][:12]}"

    def clear(self) -> Path | None:
        """Move outputs that no stamp tells of aside; return the folder that holds them, or None."""
        there = [output for output in self.outputs if output.exists()]
        if not there:
            return None
        aside = self._free(f"{self.name}-unknown")
        aside.mkdir(parents=True)
        for output in there:
            output.replace(aside / output.name)
        return aside

    def _free(self, stem: str) -> Path:
        """Return a folder below ``previous/`` that is not there yet."""
        aside, number = self.root / PREVIOUS / stem, 1
        while aside.exists():
            number += 1
            aside = self.root / PREVIOUS / f"{stem}-{number}"
        return aside

    def leave(self, stamp: Stamp) -> Path | None:
        """Move the outputs of ``stamp`` aside, and the stamp with them.

        Returns:
            The folder that holds them now; None where nothing was made yet, or all stays in place.
        """
        if not any(output.exists() for output in self.outputs):
            self.file.unlink()
            return None
        return self._leave(stamp, self._free(self._stem(stamp)).name)

    def _leave(self, stamp: Stamp, name: str) -> Path:
        aside = self.root / PREVIOUS / name
        atomic_write_json(aside / STAMP, stamp)
        atomic_write_json(self.file, {**stamp, "state": "leaving", "was": stamp, "aside": name})
        for output in self.outputs:
            if output.exists():
                output.replace(aside / output.name)
        self.file.unlink()
        return aside

    def arrive(self, is_wanted: Callable[[Stamp], bool]) -> Stamp | None:
        """Bring back the newest outputs kept aside whose stamp is wanted; return it, or None."""
        kept = self.kept(is_wanted)
        return None if kept is None else self._arrive(kept)

    def kept(self, is_wanted: Callable[[Stamp], bool]) -> str | None:
        """Return the newest folder below ``previous/`` whose stamp is wanted, or None."""
        kept = [
            (stamp_file.stat().st_mtime_ns, stamp_file.parent.name)
            for stamp_file in (self.root / PREVIOUS).glob(f"{self.name}-*/{STAMP}")
            if _ASIDE.fullmatch(stamp_file.parent.name)
            and (stamp := read_stamp(stamp_file)) is not None
            and is_wanted(stamp)
        ]
        return max(kept)[1] if kept else None

    def _arrive(self, name: str) -> Stamp | None:
        self.recall(f"{PREVIOUS}/{name}")
        kept = self.root / PREVIOUS / name
        stamp = read_stamp(kept / STAMP)
        if stamp is None:
            return None
        atomic_write_json(self.file, {**stamp, "state": "arriving", "was": stamp, "aside": name})
        arriving = [output for output in self.outputs if (kept / output.name).exists()]
        replace(self, outputs=arriving).clear()
        for output in arriving:
            (kept / output.name).replace(output)
        self.write(stamp)
        shutil.rmtree(kept)
        return stamp

    def write(self, stamp: Stamp) -> None:
        """Put ``stamp`` in place."""
        atomic_write_json(self.file, stamp)


def read_stamp(path: Path) -> Stamp | None:
    """Return the stamp in ``path``; None where there is none, and a damaged one counts as none.

    Raises:
        OSError: its file system is away.
    """
    try:
        stamp = json.loads(read_steadily(path))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in AWAY:
            raise
        return None
    return stamp if _is_whole(stamp) and _is_whole(stamp.get("was", stamp)) else None


def _is_whole(stamp: Any) -> bool:
    if not isinstance(stamp, dict) or not {"key", "state", "inputs"} <= stamp.keys():
        return False
    needed = {"done": {"fingerprint", "note"}, "leaving": {"was"}}.get(str(stamp["state"]), set())
    if not isinstance(stamp["inputs"], dict) or not needed <= stamp.keys():
        return False
    # Both become parts of paths.
    parts = ((_KEY, stamp["key"]), (_ASIDE, stamp.get("aside", f"x-{stamp['key'][:12]}")))
    return all(isinstance(text, str) and form.fullmatch(text) for form, text in parts)
