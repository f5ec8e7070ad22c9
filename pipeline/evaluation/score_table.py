"""The scores of a system as a table for a terminal."""

from __future__ import annotations

from pipeline.evaluation.aggregate import difference
from pipeline.evaluation.score_files import LEAK, METRICS, WHOLE_METRICS
from pipeline.evaluation.summary import (
    AGAINST_OTHERS,
    AGGREGATION,
    LARGEST_DB,
    METRIC,
    SCENARIOS,
    Summary,
    aggregation_of,
    unit,
    usual_aggregation,
)

_MOST_IN_A_LINE = 8  # sources and the average, whose figures one line holds


def score_table(summary: Summary, baseline: Summary | None = None) -> str:
    """Return the plain-text table of a terminal: sources x SDR ISR SIR SAR.

    Beside it stands a ``baseline`` on the same tracks (the mixture), and the difference to it.
    """
    blocks = [(summary.name, lambda s, m: _median(summary, s, m))]
    if baseline is not None:
        blocks.append((baseline.name, lambda s, m: _median(baseline, s, m)))
        blocks.append(("difference", lambda s, m: _difference(summary, baseline, s, m)))
    rows = [*summary.sources, "average"]
    label = max(len(row) for row in rows) + 1
    width = 7 * len(METRICS)
    data = summary.data
    lines = [
        f"{data.name} ({data.hash[:12]}), {data.split}, {summary.songs}: {METRIC} "
        f"in dB, {AGGREGATION}",
        " " * label + "  ".join(f" {_cut(name, width - 1):^{width - 1}}" for name, _ in blocks),
        " " * label + "  ".join("".join(f"{m:>7}" for m in METRICS) for _ in blocks),
    ]
    for row in rows:
        cells = ("".join(_cell(value(row, metric)) for metric in METRICS) for _, value in blocks)
        lines.append(f"{row:<{label}}" + "  ".join(cells))
    many = len(rows) > _MOST_IN_A_LINE
    lines += _others(summary, rows, label) if many else _whole_lines(summary)
    if summary.definitions["scenario"] != SCENARIOS["sources"]:
        lines.append(summary.definitions["scenario"])
    if any(summary.nan_frames.values()) and not many:
        lines.append(f"frames without a number (silent): {_nan_text(summary)}")
    return "\n".join(lines)


def _others(summary: Summary, rows: list[str], label: int) -> list[str]:
    """Return a second table for many sources: scores of whole songs, and what has none."""
    metrics = {metric: usual_aggregation(metric) for metric in (*WHOLE_METRICS, LEAK)}
    alike: dict[str, list[str]] = {}
    for metric, how in metrics.items():
        alike.setdefault(f"{aggregation_of(metric, how)}{unit(metric)}", []).append(metric)
    heads = {head: max(7, len(head) + 1) for head in (*metrics, "silent", "NaN")}
    lines = [
        *(f"{', '.join(names)}: {meaning}" for meaning, names in alike.items()),
        f"silent: songs; NaN: frames without a number, of {summary.frames}",
        " " * label + "".join(f"{head:>{width}}" for head, width in heads.items()),
    ]
    for row in rows:
        figures = summary.average if row == "average" else summary.scores[row]
        cells = [_cell(getattr(figures[metric], how)) for metric, how in metrics.items()]
        if row != "average":
            cells += [str(summary.count(row, LEAK)), str(summary.nan_frames[row])]
        pairs = zip(cells, heads.values(), strict=False)
        lines.append(f"{row:<{label}}" + "".join(f"{cell:>{width}}" for cell, width in pairs))
    return lines


def _whole_lines(summary: Summary) -> list[str]:
    """Return a line for each score of whole songs, as it is usually taken over tracks."""
    lines = []
    for metric in (*WHOLE_METRICS, LEAK):
        how = usual_aggregation(metric)
        rows = (*summary.scores.items(), ("average", summary.average))
        figures = {name: getattr(row[metric], how) for name, row in rows}
        found = [name for name, value in figures.items() if value is not None]
        shown = found if metric == LEAK else figures
        if found:
            cells = "  ".join(f"{name} {_cell(figures[name]).strip()}" for name in shown)
            lines.append(f"{metric}{unit(metric)}, {aggregation_of(metric, how)}:  {cells}")
    silent = [f"{s} {n}" for s in summary.sources if (n := summary.count(s, LEAK))]
    if silent:
        lines.append(f"songs in which a source is silent: {', '.join(silent)}")
    return lines


def _nan_text(summary: Summary) -> str:
    counts = [f"{source} {count}" for source, count in summary.nan_frames.items()]
    return f"{', '.join(counts)} of {summary.frames}"


def _median(summary: Summary, source: str, metric: str) -> float | None:
    figures = summary.average if source == "average" else summary.scores.get(source, {})
    return figures[metric].median if metric in figures else None


def _difference(one: Summary, other: Summary, source: str, metric: str) -> float | None:
    if one.scenario != other.scenario and metric in AGAINST_OTHERS:
        return None
    return difference(_median(one, source, metric), _median(other, source, metric))


def _cell(value: float | None) -> str:
    text = "-" if value is None else f"{value:.2f}"
    return f"{f'>{LARGEST_DB:.0f}' if value is not None and value > LARGEST_DB else text:>7}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
