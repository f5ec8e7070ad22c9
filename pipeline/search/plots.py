"""The plots of a search: curves, importance, parallel coordinates, the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from pipeline.config.search import OBJECTIVES
from pipeline.report.plots import colour, draw
from pipeline.search.importance import Importance
from pipeline.search.ranking import Row
from pipeline.search.space import Settings
from pipeline.search.trials import shown

# The second series is the page's grey, which the trials without a colour of their own have.
COLOURED = (0, 2, 3, 4, 5)
_GREY = 1
# Values that lie so far apart are shown on a logarithm.
_FAR = 20
LABELS = {
    "sdr": "SDR in validation, dB",
    "val_loss": "validation loss",
    "parameters": "parameters",
    "seconds": "seconds a song of 4 minutes",
}


def curves_plot(rows: Sequence[Row], objective: str) -> str:
    """Return each trial's figure over its epochs; a cross ends a trial that was cut short."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, row in reversed(list(enumerate(rows))):
            points = [(one.epoch, getattr(one, objective)) for one in row.trial.curve]
            points = [(epoch, value) for epoch, value in points if value is not None]
            if not points:
                continue
            epochs, values = zip(*points, strict=True)
            _line(axes, place, epochs, values, faint=0.6)
            mark = {"stopped": "x", "failed": "s"}.get(row.trial.status, "o")
            size, edge = (7, 1.8) if mark == "x" else (4.5, 0)
            axes.plot(
                epochs[-1:], values[-1:], mark, color=_ink(place),
                markersize=size, markeredgewidth=edge,
            )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(LABELS[objective])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return draw("search-curves", (8.6, 3.9), paint)


def _ink(rank: int) -> str:
    return colour(COLOURED[rank] if rank < len(COLOURED) else _GREY)


def _line(axes: Axes, rank: int, x: Sequence[float], y: Sequence[float], *, faint: float) -> None:
    """Draw a trial's line: strong for the best ones, with opacity ``faint`` for the others."""
    top = rank < len(COLOURED)
    width, alpha = (2.0, 1.0) if top else (1.0, faint)
    axes.plot(x, y, "-", color=_ink(rank), linewidth=width, alpha=alpha)


def importance_plot(found: Sequence[Importance]) -> str:
    """Return a bar for each option."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = range(len(found))[::-1]
        for place, one in zip(places, found, strict=True):
            ink = colour(0 if one.p < 0.05 else _GREY)
            axes.barh(place, one.share, height=0.56, color=ink)
            axes.text(one.share + 0.012, place, f"{one.share:.0%}", va="center")
        axes.set_yticks(list(places), [one.name for one in found])
        axes.set_xlim(0, max(1.12 * max(one.share for one in found), 0.2) + 0.04)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")

    return draw("search-importance", (8.6, 0.7 + 0.36 * len(found)), paint)


def parallel_plot(rows: Sequence[Row], objective: str) -> str:
    """Return a line for each trial through its settings, to its figure on the last axis."""
    rows = [row for row in rows if row.trial.figure(objective) is not None]
    names = list(dict.fromkeys(name for row in rows for name in row.trial.settings))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        scales = [_scale([row.trial.settings for row in rows], name) for name in names]
        figures = [row.trial.figure(objective) or 0.0 for row in rows]
        low, high = min(figures), max(figures)
        for place in reversed(range(len(rows))):
            heights = [scale[0][place] for scale in scales]
            last = (figures[place] - low) / (high - low) if high > low else 0.5
            _line(axes, place, range(len(names) + 1), [*heights, last], faint=0.5)
        for column, (_, ticks) in enumerate(scales):
            _axis(axes, column, ticks)
        _axis(axes, len(names), [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")])
        axes.set_xticks(range(len(names) + 1), [*names, objective], rotation=20, ha="right")
        axes.set_xlim(-0.3, len(names) + 0.5)
        axes.set_ylim(-0.08, 1.1)
        axes.yaxis.set_major_locator(NullLocator())
        axes.grid(visible=False)

    return draw("search-parallel", (max(8.6, 0.98 * len(names)), 4.6), paint)


def _scale(settings: Sequence[Settings], name: str) -> tuple[list[float], list[tuple[float, str]]]:
    """Return each trial's height on the axis of an option, and the axis's marks.

    The heights go from 0 to 1; trials without the option are at 0, which is marked with a dash.
    """
    there = [one[name] for one in settings if name in one]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in there)
    different = sorted(set(there), key=None if numeric else str)
    everywhere = len(there) == len(settings)
    gap, marks = (0.0, []) if everywhere else (0.14, [(0.0, "-")])
    if numeric and len(different) > 5:
        low, high = different[0], different[-1]
        place = {v: gap + (1 - gap) * _fraction(v, low, high) for v in different}
        marks += [(gap, shown(low)), (1.0, shown(high))]
    else:
        steps = max(1, len(different) - 1)
        place = {v: gap + (1 - gap) * n / steps for n, v in enumerate(different)}
        marks += [(height, shown(value)) for value, height in place.items()]
    return [place[one[name]] if name in one else 0.0 for one in settings], marks


def _fraction(value: float, low: float, high: float) -> float:
    """Return where ``value`` lies between the ends; on a logarithm where they are far apart."""
    if low > 0 and high / low > 8:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _axis(axes: Axes, column: int, marks: Sequence[tuple[float, str]]) -> None:
    axes.plot([column, column], [0, 1], "-", color=colour(None), linewidth=1.2, zorder=0)
    for height, text in marks:
        axes.text(column + 0.05, height + 0.012, text, fontsize=9, va="bottom", zorder=9)


def front_plot(rows: Sequence[Row], first: str, second: str, *, lined: bool) -> str:
    """Return the trials by two objectives, the Pareto front as a line if ``lined``."""
    points = [
        (x, y, row)
        for row in rows
        if (x := row.trial.figure(second)) is not None
        and (y := row.trial.figure(first)) is not None
    ]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        best = sorted((x, y) for x, y, row in points if row.on_front)
        # Of three objectives a line would run zigzag through what the other one decides.
        if best and lined:
            axes.plot(*zip(*best, strict=True), "-", color=colour(0), linewidth=1.4, alpha=0.6)
        for x, y, row in points:
            axes.plot([x], [y], "o", color=colour(0 if row.on_front else _GREY), markersize=6)
            if row.on_front:
                axes.annotate(
                    row.trial.name, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=9
                )
        values = [x for x, _, _ in points]
        if values and max(values) > _FAR * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axes.set_xlabel(f"{LABELS[second]} ({'more' if OBJECTIVES[second] else 'less'} is better)")
        axes.set_ylabel(LABELS[first])
        axes.grid(axis="x")

    return draw(f"search-front-{second}", (8.6, 3.9), paint)
