"""The curves of a training, read from its journal."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from lasaft.errors import DataError
from lasaft.files import read_steadily
from pipeline.cluster.progress import say
from pipeline.report.plots import SERIES, curves

_LARGEST = 1e30
_Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curves:
    """One plot: its title, the names of its lines in the order of their colours, and the SVG."""

    title: str
    names: list[str]
    svg: str


def read_curves(journal: Path) -> list[Curves]:
    """Return the plots of a training's journal; none if there is no journal.

    Values are grouped by the last word of their name: ``train/loss`` and ``valid/loss`` share a
    plot, ``valid/vocals/SDR`` and ``valid/drums/SDR`` the next; groups without a loss or a score
    (learning rate, times) are not drawn.

    Raises:
        DataError: a line in the middle of the journal is damaged.
    """
    # What was best is one of the points that are drawn already.
    series = {name: p for name, p in _read(journal).items() if not name.startswith("best/")}
    losses = {name: points for name, points in series.items() if "loss" in name.lower()}
    scores = {name: points for name, points in series.items() if "sdr" in name.lower()}
    plots = []
    if len(scores) > SERIES:
        scores = _extremes(scores)
    for title, found, log in (("Loss", losses, True), ("SDR in validation", scores, False)):
        group = dict(list(found.items())[:SERIES])
        if group:
            label = "loss" if log else "SDR in dB"
            svg = curves(group, label, title.split()[0].lower(), logarithmic=log)
            plots.append(Curves(title, list(group), svg))
    return plots


def _extremes(scores: dict[str, _Points]) -> dict[str, _Points]:
    """Return what stands for more lines than a plot shows: their highest, mean and lowest."""
    values: dict[float, list[float]] = defaultdict(list)
    for points in scores.values():
        for step, value in points:
            values[step].append(value)
    lines = {"highest": max, f"mean of {len(scores)}": fmean, "lowest": min}
    return {name: [(s, line(values[s])) for s in sorted(values)] for name, line in lines.items()}


# What a line raises that is none of a training; numbers may be too large for any.
_NO_RECORD = (
    ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError,
)  # fmt: skip


def _read(journal: Path) -> dict[str, _Points]:
    if not journal.exists():
        return {}
    data = read_steadily(journal)
    lines = data.splitlines()
    series: dict[str, dict[float, float]] = defaultdict(dict)
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step = float(record["step"])
            for name, value in record["values"].items():
                # A value that was no number, or that no plot can show, leaves a gap.
                if value is not None and abs(float(value)) < _LARGEST and step < _LARGEST:
                    series[name][step] = float(value)
        except _NO_RECORD as error:
            if number == len(lines) and not data.endswith(b"\n"):
                say(f"report: {journal}: its last line is cut off and left out")
                break
            raise DataError(f"{journal}, line {number}: not a record of training") from error
    return {name: sorted(points.items()) for name, points in sorted(series.items())}
