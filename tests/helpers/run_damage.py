"""Every file of a finished run damaged in every way, and what each command then does."""

from __future__ import annotations

import importlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pipeline.cluster.connection import connected
from pipeline.config import ClusterConfig

SMALL = (
    "--preset", "demo", "--synthetic_train", "1", "--synthetic_valid", "1", "--synthetic_test", "1",
    "--synthetic_seconds", "2", "--steps_per_epoch", "8", "--max_epochs", "2", "--log", "False",
    "--num_frame", "16", "--n_blocks", "3", "--internal_channels", "4", "--n_internal_layers", "1",
    "--num_tdfs", "2", "--dk", "4", "--overlap_ratio", "0",
)  # fmt: skip
_SONGS = SMALL[2:10]
_LEARNS = tuple(w for w in SMALL[10:-2])
# What each command is given besides the folder.
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": SMALL,
    "train": ("--preset", "demo", *_LEARNS),
    "evaluate": (*_SONGS, "--overlap_ratio", "0", "--log", "False"),
    "report": ("--log", "False"),
    "doctor": SMALL,
    "preprocess": ("--verify",),
    "tune": ("--preset", "demo", *_LEARNS, "--trial_epochs", "1", "--space", "{root}/space.yaml"),
}
RIGHT, MENDED, TOLD, WRONG = "right, not needed", "mended", "one clear line", "WRONG"


def _flip(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def _empty(data: bytearray, _: random.Random) -> None:
    data.clear()


def _foreign(data: bytearray, draw: random.Random) -> None:
    data[:] = draw.choice((b"{}", b"[]\n", b"\x80\xff", b"PK\x03\x04" + bytes(60)))


WAYS: dict[str, Callable[[bytearray, random.Random], None] | None] = {
    "flipped bit": _flip, "cut": _cut, "emptied": _empty, "foreign": _foreign, "removed": None,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run in ``root/whole``; damages are made to a copy of it in ``root/run``.

    The copy has the path at which the run was made: a run may be moved, but its results name it.
    """

    root: Path

    @classmethod
    def make(cls, root: Path, *more: str) -> Run:
        """Make the run, and give ``more`` commands; call while connected to Ray."""
        run = cls(root)
        (root / "space.yaml").write_text("options: {lr: [0.001, 0.003]}\n")
        for command in ("run", *more):
            code, _, told = run.give(command)
            assert code == 0, told
        run.folder.rename(run.whole)
        return run

    @property
    def folder(self) -> Path:
        """Where the copy lies."""
        return self.root / "run"

    @property
    def whole(self) -> Path:
        """The run as it was made."""
        return self.root / "whole"

    @cached_property
    def files(self) -> list[str]:
        """Every file that holds something, by its path in the run."""
        found = (path for path in self.whole.rglob("*") if path.is_file() and path.stat().st_size)
        paths = [str(path.relative_to(self.whole)) for path in found]
        return sorted(path for path in paths if not path.endswith("lock"))

    def give(self, command: str) -> tuple[int, str, str]:
        """Give a command; return its exit code, its output, and what it says besides."""
        out, told = io.StringIO(), io.StringIO()
        words = [word.format(root=self.root) for word in COMMANDS[command]]
        words += ["--output_dir", str(self.folder), "--json"]
        with redirect_stdout(out), redirect_stderr(told):
            code = importlib.import_module(f"jobs.{command}").main(words)
        return code, out.getvalue(), told.getvalue()

    @cache  # noqa: B019 (there is one run)
    def undisturbed(self, command: str) -> str:
        """Return what a command gives for the sound run."""
        self._copy()
        code, out, told = self.give(command)
        assert code == 0, told
        return _plain(out)

    def _copy(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.whole, self.folder)

    def outcome(self, file: str, way: str, command: str, draw: random.Random) -> tuple[str, str]:
        """Damage a file, give a command, and return what became of it and what was said."""
        expected = self.undisturbed(command)
        self._copy()
        self._damage(file, way, draw)
        try:
            code, out, told = self.give(command)
        except Exception as error:  # noqa: BLE001 (a traceback, at a terminal)
            return WRONG, f"{type(error).__name__}: {error}"
        if code:
            lines = [line for line in told.splitlines() if f"{command}: error: " in line]
            lines = lines or [line for line in out.splitlines() if "damaged" in line]
            well = len(lines) == 1 and "Traceback" not in told
            return (TOLD if well else WRONG), "\n".join(lines) or told or out
        if _plain(out) != expected or self._results(file) != self._results(file, self.whole):
            # What is left out of a report is told; everything else would be taken for right.
            return (TOLD if Path(file).parent.name in told else WRONG), f"{told}\n{out}"
        same = (self.folder / file).is_file() and self._bytes(file) == self._bytes(file, self.whole)
        return (MENDED if same else RIGHT), told

    def _damage(self, file: str, way: str, draw: random.Random) -> None:
        path, change = self.folder / file, WAYS[way]
        if change is None:
            path.unlink()
            return
        data = bytearray(path.read_bytes())
        while data == path.read_bytes():
            change(data, draw)
        path.write_bytes(data)

    def _bytes(self, file: str, folder: Path | None = None) -> bytes:
        return ((folder or self.folder) / file).read_bytes()

    def _results(self, damaged: str, folder: Path | None = None) -> list[bytes]:
        """Return the files that people take away from a run, but the one that was damaged."""
        names = {"report/leaderboard.json", "report/leaderboard.csv", "checkpoint/config.json"}
        return [self._bytes(name, folder) for name in sorted(names - {damaged})]


def _plain(out: str) -> str:
    """Return the result of a command without what the clock decides."""
    found: Any = json.loads(out)
    for part in (found, *found.get("trials", ())):
        for name in ("steps", "checks", "seconds", "data_wait_share", "training_seconds"):
            part.pop(name, None)
    return json.dumps(found)


def every(run: Run, ways: Sequence[str], commands: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each file with each way to damage it and each command."""
    yield from ((file, way, c) for file in run.files for way in ways for c in commands)


@contextmanager
def finished_run(root: Path, *more: str) -> Iterator[Run]:
    """Make the run, give ``more`` commands, and stay connected to a small cluster here."""
    with connected(ClusterConfig(num_cpus=2)):
        yield Run.make(root, *more)
