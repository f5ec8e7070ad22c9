"""The leaderboard for other programs and for papers: CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from lasaft.card import CARD_FIELDS
from pipeline.evaluation.summary import (
    AGGREGATION,
    METRIC,
    aggregation_of,
    unit,
    usual_aggregation,
)
from pipeline.report.board import Board, Cell, PublishedTable, Row, by_average
from pipeline.report.comparisons import AVERAGE

_COLUMNS = (
    "system", "kind", "source", "metric", "aggregation", "value_db", "low_db", "high_db", "sd_db",
    "tracks", "failed", "frames", "nan_frames", "left_out_frames", "silence_gain_db", "place",
    "data", "data_hash", "split", "checkpoint", "origin", *CARD_FIELDS[1:],
)  # fmt: skip


def csv_text(board: Board) -> str:
    """Return the leaderboard as CSV, a line for each system, source, metric and aggregation."""
    buffer = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in _csv_lines(board):
        writer.writerow({name: _csv_cell(value) for name, value in line.items()})
    return buffer.getvalue()


def _csv_lines(board: Board) -> Iterator[dict[str, Any]]:
    for row in (*board.measured, *board.published):
        for (source, metric, aggregation), cell in row.cells.items():
            yield {
                "system": row.name, "kind": row.kind, "source": source, "metric": metric,
                "aggregation": aggregation, "value_db": cell.value, "low_db": cell.low,
                "high_db": cell.high, **row.facts(source),
                **({} if cell.tracks is None else {"tracks": cell.tracks}),
            }  # fmt: skip
    data = board.lead.data
    for group in board.seeds:
        for (source, metric, aggregation), spread in group.cells.items():
            yield {
                "system": group.name, "kind": "seeds", "source": source, "metric": metric,
                "aggregation": aggregation, "value_db": spread.mean, "sd_db": spread.sd,
                "tracks": len(board.lead.tracks), "data": data.name, "data_hash": data.hash,
                "split": data.split,
                "origin": f"mean over the seeds of {', '.join(group.runs.values())}",
            }  # fmt: skip


def _csv_cell(value: object) -> str:
    """Return a figure with five decimals, or a text that no spreadsheet takes for a formula."""
    if isinstance(value, float):
        return f"{value:.5f}"
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def json_text(board: Board) -> str:
    """Return the whole board as JSON: definitions, systems, tracks, tests."""
    return json.dumps(board.as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def markdown_text(board: Board) -> str:
    """Return the SDR and uSDR tables as Markdown, with what their figures mean below them."""
    lines = [*_markdown_table(board, "SDR"), _md(board.caption), ""]
    if board.comparable:
        lines += ["As published by:", ""]
        numbered = enumerate(board.comparable, 1)
        lines += [*(f"{n}. {_md(_publication(t))}, <{t.url}>" for n, t in numbered), ""]
    for group in board.seeds:
        figure = group.cells.get((AVERAGE, "SDR", "median"))
        if figure is not None:
            seeds = f"{len(group.runs)} seeds ({', '.join(map(str, group.runs))})"
            average = f"{figure.mean:.2f} ± {figure.sd:.2f} dB (mean ± standard deviation)"
            lines += [f"{_md(group.name)} over {seeds}: average SDR {average}", ""]
    if any(row.cells.get((AVERAGE, "uSDR", "mean"), Cell(None)).value for row in board.measured):
        lines += [*_markdown_table(board, "uSDR"), _md(board.lead.definitions["uSDR"]), ""]
    return "\n".join(lines)


def _markdown_table(board: Board, metric: str) -> list[str]:
    how = usual_aggregation(metric)
    head = ["system", *board.sources, "average"]
    lines = [
        f"### {_md(board.title)}: {metric}{unit(metric)}, {aggregation_of(metric, how)}",
        "",
        "| " + " | ".join(_md(h) for h in head) + " |",
        "|---" + "|---:" * (len(head) - 1) + "|",
    ]
    published = (row for row in board.published if (metric, how) in row.views)
    for row in sorted(
        [*board.measured, *published],
        key=lambda row: (row.kind == "published", by_average(row, metric, how)),
    ):
        mark = f" *(as published, {board.number(row)})*" if row.kind == "published" else ""
        cells = " | ".join(_figures(board, row, metric))
        lines.append(f"| {_md(row.name)}{mark} | {cells} |")
    return [*lines, ""]


def _publication(table: PublishedTable) -> str:
    """Return where figures of others are from, and what they are."""
    return f"{table.title}: {table.source}; {table.metric}; {table.aggregation}; {table.data}"


_MD = {ord(character): f"\\{character}" for character in "\\`*_{}[]#~"} | {
    ord(character): f"&#{ord(character)};" for character in "<>|&"
}


def _md(text: str) -> str:
    return " ".join(text.translate(_MD).split())


def ranking_text(board: Board) -> str:
    """Return the systems as a table for a terminal, the best average first, with their places."""
    lines = [["place", "system", *board.sources, AVERAGE]]
    for row in board.measured:
        place = row.places.get(AVERAGE)
        text = "-" if place is None else "-".join(map(str, dict.fromkeys(place)))
        lines.append([text, row.name, *_figures(board, row)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = (
        "  ".join(f"{cell:{'<' if n < 2 else '>'}{widths[n]}}" for n, cell in enumerate(line))
        for line in lines
    )
    head = f"{board.title}: {METRIC} in dB, {AGGREGATION}; places that the tests leave open"
    return "\n".join([head, *rows])


def latex_text(board: Board) -> str:
    """Return the SDR table as LaTeX (package booktabs), its definition in the caption."""
    columns = "l" + "r" * (len(board.sources) + 1)
    head = " & ".join(["System", *(_tex(s) for s in board.sources), "average"])
    body = [f"{_tex(r.name)} & {' & '.join(_figures(board, r))} \\\\" for r in board.measured]
    published = [row for row in board.published if ("SDR", "median") in row.views]
    if published:
        body.append("\\midrule")
    for row in published:
        name = f"{_tex(row.name)}$^{{\\dagger {board.number(row)}}}$"
        body.append(f"{name} & {' & '.join(_figures(board, row))} \\\\")
    numbers = sorted({board.number(row) for row in published})
    quoted = [f"{n}: {_tex(_publication(board.comparable[n - 1]))}." for n in numbers]
    note = f" $^\\dagger$As published. {' '.join(quoted)}" if published else ""
    return "\n".join(
        [
            "\\begin{table}", "\\centering",
            f"\\caption{{{_tex(board.title)}: SDR in dB. {_tex(board.caption)}{note}}}",
            f"\\begin{{tabular}}{{{columns}}}", "\\toprule", f"{head} \\\\", "\\midrule",
            *body, "\\bottomrule", "\\end{tabular}", "\\end{table}", "",
        ]
    )  # fmt: skip


_TEX = str.maketrans({
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_",
    "{": "\\{", "}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}",
})  # fmt: skip


def _tex(text: str) -> str:
    return " ".join(text.translate(_TEX).split())


def _figures(board: Board, row: Row, metric: str = "SDR") -> Sequence[str]:
    how = usual_aggregation(metric)
    cells = [row.cells.get((s, metric, how)) for s in (*board.sources, AVERAGE)]
    return ["-" if cell is None or cell.value is None else f"{cell.value:.2f}" for cell in cells]
