"""The requests of a run that lives in a bucket, counted, and what those of a whole run cost.

    python -m benchmarks.requests [--hours 24]

Three runs of ``jobs.run`` against an S3-like server on this machine: with few and short songs, with
longer ones, and with more of these. What each part of a run asks for grows with songs, bytes,
epochs or time, and with nothing else; so they tell what 100 songs to train, 50 to test and 100
epochs ask for.
Shards are counted as read once, by one node whose cache holds them.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote

import numpy as np
from moto.moto_server.werkzeug_app import DomainDispatcherApplication as Application
from scipy.optimize import nnls

from benchmarks.measure import Table
from tests.helpers import ROOT
from tests.helpers.object_store import address, object_sizes, object_store

# USD for 1000 requests: S3 Standard, us-east-1, list price of 2025. To delete costs nothing.
PRICES = {"PUT": 0.005, "LIST": 0.005, "GET": 0.0004, "HEAD": 0.0004}
_SMALL_NETWORK = [
    "--preset", "demo", "--save_estimates", "none", "--steps_per_epoch", "10", "--num_frame", "16",
    "--n_blocks", "3", "--internal_channels", "4", "--n_internal_layers", "1", "--num_tdfs", "2",
    "--dk", "4",
]  # fmt: skip
# Parts of a run, by how their objects' names begin, and with what their requests grow.
_PARTS = {
    "songs": "songs/MB", "shards": "songs/MB", "scores": "test songs", "estimates": "test songs",
    "training": "epochs", "checkpoint": "epochs", "checkpoints": "epochs",
    ".lease.json": "hours", "training/.writer.json": "hours", "logs": "hours",
}  # fmt: skip
_REST = "all else"


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    train: int
    test: int
    epochs: int
    seconds: float  # of a song
    hours: float = 0.0
    bytes: int = 0  # of songs and shards

    @property
    def songs(self) -> int:
        """All songs."""
        return self.train + self.test


SIZES = (Size(3, 1, 2, 3), Size(3, 1, 2, 30), Size(5, 3, 6, 30))
# MUSDB18: 150 songs of four minutes. A second of a song is 0.9 MB as wav files, and as shards what
# n_fft 2048 with hop_length 1024 makes of it.
WHOLE = Size(100, 50, 100, 240, bytes=round(150 * 240 * (0.88e6 + 43.07 * 1025 * 4 * 5 * 2)))

Counts = collections.Counter[tuple[str, str]]  # by part and kind


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what every S3-like server of this process is asked inside the ``with``."""
    counts, lock, answer = Counts(), threading.Lock(), Application.__call__

    def count(self: Application, environ: dict[str, Any], start: Any) -> Any:
        kind, name = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"])
        query = parse_qs(environ["QUERY_STRING"])
        if kind == "GET" and not name.strip("/").partition("/")[2]:
            kind, name = "LIST", f"/bucket/{query.get('prefix', [''])[0]}"
        with lock:
            counts[_part(name), "PUT" if kind == "POST" else kind] += 1
        return answer(self, environ, start)

    with mock.patch.object(Application, "__call__", count):
        yield counts


def _part(name: str) -> str:
    inside = name.strip("/").partition("/")[2].partition("/")[2]  # behind bucket and run
    known = [part for part in _PARTS if f"{inside}/".startswith((f"{part}/", f"{part}."))]
    return max(known, key=len, default=_REST)


def run(size: Size, folder: Path) -> tuple[Size, Counts]:
    """Do a run; return its size as it was, and what was asked."""
    with counted() as counts, object_store() as port:
        place = address(f"run{size.train}x{size.seconds}", port)
        counts.clear()
        words = {
            "synthetic_train": size.train - 1, "synthetic_valid": 1, "synthetic_test": size.test,
            "synthetic_seconds": size.seconds, "max_epochs": size.epochs, "output_dir": place,
        }  # fmt: skip
        given = [word for name, value in words.items() for word in (f"--{name}", str(value))]
        start = time.monotonic()
        command = [sys.executable, "-m", "jobs.run", *_SMALL_NETWORK, *given]
        settings = {**os.environ, "XDG_CACHE_HOME": str(folder)}
        subprocess.run(command, cwd=ROOT, env=settings, check=True, stdout=subprocess.DEVNULL)
        hours = (time.monotonic() - start) / 3600
        asked = Counts(counts)
        sizes = object_sizes(place)
    moved = sum(sizes[name] for name in sizes if name.startswith(("songs/", "shards/")))
    return Size(size.train, size.test, size.epochs, size.seconds, hours, moved), asked


def extrapolated(runs: list[tuple[Size, Counts]], size: Size) -> Counts:
    """Return what a run of this size would ask for."""
    found = Counts()
    for part, kind in {key for _, counts in runs for key in counts}:
        asked = np.array([counts[part, kind] for _, counts in runs], dtype=float)
        known = np.array([_grows(part, each) for each, _ in runs])
        weights, _ = nnls(known, asked)  # more songs never ask for less
        found[part, kind] = round(float(weights @ np.array(_grows(part, size))))
    return found


def _grows(part: str, size: Size) -> list[float]:
    """Return what the requests for a part are a sum of multiples of."""
    match _PARTS.get(part):
        case "songs/MB":
            return [1.0, size.songs, size.bytes / 1e6]
        case "test songs":
            return [1.0, size.test]
        case "epochs":
            return [1.0, size.epochs]
        case "hours":
            return [1.0, size.hours]
    return [1.0]


def show(rows: dict[str, Counts]) -> None:
    """Print what each run asks for, and what the last one costs."""
    table = Table("of", "grows with", *rows, "USD")
    *_, last = rows.values()
    parts = [*_PARTS, _REST]
    for part in parts:
        cells = [_cell(counts, part) for counts in rows.values()]
        table.row(part, _PARTS.get(part, ""), *cells, f"{_cost(last, part):.2f}")
    table.row("", "", *("" for _ in rows), f"{sum(_cost(last, part) for part in parts):.2f}")


def _cell(counts: Counts, part: str) -> str:
    return " + ".join(f"{counts[part, kind]:,} {kind}" for kind in PRICES if counts[part, kind])


def _cost(counts: Counts, part: str) -> float:
    return sum(counts[part, kind] * price / 1000 for kind, price in PRICES.items())


def main() -> None:
    """Do the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24.0, help="that the whole run takes")
    hours = parser.parse_args().hours
    with tempfile.TemporaryDirectory() as name:
        runs = [run(size, Path(name)) for size in SIZES]
    whole = Size(WHOLE.train, WHOLE.test, WHOLE.epochs, WHOLE.seconds, hours, WHOLE.bytes)
    rows = {
        f"{size.songs} songs of {size.seconds:g} s, {size.epochs} epochs": counts
        for size, counts in runs
    }
    rows[f"{whole.songs} songs, {whole.epochs} epochs, {hours:g} h"] = extrapolated(runs, whole)
    show(rows)


if __name__ == "__main__":
    main()
