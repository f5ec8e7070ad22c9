"""Plots as SVG that follow the page's colours, the same bytes for the same figures."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

SERIES = 6
# Placeholder colours which the SVG's text exchanges for CSS variables: one plot for light and dark.
_INK, _FAINT = "#000001", "#000002"
_COLOURS = [f"#0000{16 + number:02x}" for number in range(SERIES)]
_VARIABLES = {_INK: "var(--ink-2)", _FAINT: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_COLOURS)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10.5,
    "figure.facecolor": "none", "axes.facecolor": "none", "axes.edgecolor": _FAINT,
    "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": _FAINT, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "xtick.bottom": False, "ytick.left": False,
}  # fmt: skip


def ticks(numbers: Sequence[float]) -> list[float]:
    """Return the marks of an axis that holds all ``numbers``: few, and round."""
    return list(MaxNLocator(3, min_n_ticks=2).tick_values(min(numbers), max(numbers)))


def strip(numbers: Sequence[float], marks: Sequence[float], tone: str) -> str:
    """Return a box plot that lies on its side, as an SVG that is as wide as its place.

    The box spans the quartiles, whiskers reach the farthest number within 1.5 times the box, and
    dots are the numbers.

    Args:
        numbers: one a track.
        marks: of the axis, which ends with the outer ones.
        tone: the name of its colour on the page.
    """

    def at(value: float) -> str:
        return f"{100 * (value - marks[0]) / (marks[-1] - marks[0]):.4g}"

    values = np.sort(numbers)
    low, middle, high = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (high - low)
    inside = values[(values >= low - reach) & (values <= high + reach)]
    # Dots lie over the box in the order of the golden ratio: no random jitter, same bytes.
    dots = [f"M{at(v)} {10 + 9 * (n * 0.618 % 1 - 0.5):.3g}h0" for n, v in enumerate(values)]
    paths = {
        "grid": "".join(f"M{at(mark)} 0v20" for mark in marks),
        "box": f"M{at(low)} 4H{at(high)}V16H{at(low)}z",
        "line": f"M{at(inside[0])} 10H{at(low)}M{at(high)} 10H{at(inside[-1])}",
        "dots": "".join(dots),
        "middle": f"M{at(middle)} 4V16",
    }
    drawn = "".join(f'<path class="{name}" d="{d}"/>' for name, d in paths.items())
    text = f"median {middle:.2f}, quartiles {low:.2f} and {high:.2f}"
    box = 'viewBox="0 0 100 20" preserveAspectRatio="none"'
    return f'<svg class="strip {tone}" {box} role="img" aria-label="{text}">{drawn}</svg>'


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    label: str,
    name: str,
    *,
    logarithmic: bool = False,
) -> str:
    """Return lines over training steps.

    Args:
        series: points (step, value) by name; at most ``SERIES`` of them are drawn.
        label: of the value axis, with its unit.
        name: unlike that of every other plot of the page.
        logarithmic: a logarithmic value axis, if all values are positive.
    """
    drawn = dict(list(series.items())[:SERIES])

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for colour, (title, points) in zip(_COLOURS, drawn.items(), strict=False):
            steps, values = zip(*_thin(points), strict=True)
            line = "-o" if len(points) < 40 else "-"
            axes.plot(steps, values, line, color=colour, linewidth=1.7, markersize=3, label=title)
        if logarithmic and all(v > 1e-30 for points in drawn.values() for _, v in points):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("step")
        axes.set_ylabel(label)

    return draw(name, (5.2, 3.1), paint)


def _thin(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """Return at most ``most`` points: means of equal runs of neighbours."""
    if len(points) <= most:
        return list(points)
    runs = np.array_split(np.array(points, np.float64), most)
    return [(float(run[-1, 0]), float(run[:, 1].mean())) for run in runs]


def colour(number: int | None) -> str:
    """Return the colour of a series for :func:`draw`; None is the faint one of grid lines."""
    return _FAINT if number is None else _COLOURS[number]


def draw(name: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """Return what ``paint`` puts on an empty figure, in the page's style.

    Args:
        name: unlike that of every other plot of the page.
        size: width and height in inches.
        paint: draws, with colours of :func:`colour`.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        return _svg(figure, name)


def _svg(figure: Figure, name: str) -> str:
    """Return ``figure`` as an inline SVG element without a date, its colours as CSS variables."""
    buffer = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for side in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", text, count=1)
    text = re.sub(r" xmlns(:\w+)?=\"[^\"]*\"", "", text)
    text = text.replace("<svg", f'<svg class="plot" aria-hidden="true" data-plot="{name}"', 1)
    text = text.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"; font-family: [^;\"]*", "", text)
    # A hundredth of a point is enough for places; what is to be read stays as it is.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    return re.sub(r"\n\s*", "\n", text)
