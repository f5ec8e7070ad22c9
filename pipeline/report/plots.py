"""Plots as SVG that follow the page's colours, the same bytes for the same figures."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

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


def box_plot(
    columns: Sequence[tuple[int, Mapping[str, Sequence[float]]]], label: str, name: str
) -> str:
    """Return box plots over tracks: a group for each source, a box for each system.

    Args:
        columns: for each system the number of its colour, below ``SERIES``, and for each source
            the tracks' median scores in dB.
        label: of the axis, with its unit.
        name: unlike that of every other plot of the page: the prefix of the SVG's ids.

    Boxes span the quartiles, whiskers the most extreme track within 1.5 times the box; dots are
    tracks.
    """
    sources = list(columns[0][1])
    width = 0.76 / len(columns)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (colour, scores) in enumerate(columns):
            place = (index - (len(columns) - 1) / 2) * width
            for group, source in enumerate(sources):
                _box(axes, scores[source], group + place, width * 0.72, _COLOURS[colour])
        axes.set_xticks(range(len(sources)), sources)
        axes.set_xlim(-0.6, len(sources) - 0.4)
        axes.set_ylabel(label)

    return draw(name, (8.6, 3.5), paint)


def _box(axes: Axes, numbers: Sequence[float], place: float, width: float, colour: str) -> None:
    if not numbers:
        return
    line = {"color": colour, "linewidth": 1.3}
    axes.boxplot(
        [numbers], positions=[place], widths=width, showfliers=False, patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.22, "edgecolor": colour, "linewidth": 1.3},
        medianprops={"color": colour, "linewidth": 2.6, "solid_capstyle": "butt"},
        whiskerprops=line, capprops=line, manage_ticks=False,
    )  # fmt: skip
    # Dots spread over the box in the order of their values' digits: no random jitter, same bytes.
    spread = (np.arange(len(numbers)) * 0.618) % 1 - 0.5
    dots = {"markersize": 3.2, "color": colour, "alpha": 0.75, "markeredgewidth": 0}
    axes.plot(place + spread * width * 0.6, numbers, "o", **dots)


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
    return _short(re.sub(r"\n\s*", "\n", text))


# What box plots have hundreds of, as matplotlib writes it: dots, and the lines of the boxes.
_DOT = (
    r'<use href="#\w+" x="([\d.]+)" y="([\d.]+)" '
    r'style="fill: var\(--series-(\d)\); fill-opacity: [\d.]+"/>\n'
)
_LINE = (
    r'clip-path="[^"]*" style="fill: none; stroke: var\(--series-(\d)\); stroke-width: 1.3; '
    r'stroke-linecap: square"'
)


def _short(text: str) -> str:
    """Return the same picture in less text: dots as one path, styles that recur as classes."""

    def one_path(run: re.Match[str]) -> str:
        dots = re.findall(_DOT, run[0])
        places = "".join(f"M{x} {y}h0" for x, y, _ in dots)
        return f'<path class="d{dots[0][2]}" d="{places}"/>\n'

    text = re.sub(f"(?:{_DOT})+", one_path, text)
    text = re.sub(_LINE, r'class="l\1"', text)
    for marker in re.findall(r'<defs>\n<path id="(\w+)"', text):
        if f"#{marker}" not in text:
            text = re.sub(rf'<defs>\n<path id="{marker}"[^>]*>\n</defs>\n', "", text)
    return re.sub(r"<g>\n(<path [^>]*/>)\n</g>", r"\1", text)
