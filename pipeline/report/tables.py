"""The leaderboard for other programs and for papers: CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from pipeline.evaluation.summary import aggregation_of, usual_aggregation
from pipeline.report.board import AVERAGE, Board, Cell, PublishedTable, Row

_COLUMNS = (
    "system", "kind", "source", "metric", "aggregation", "value_db", "low_db", "high_db", "sd_db",
    "tracks", "frames", "nan_frames", "data", "data_hash", "split", "checkpoint", "origin",
)  # fmt: skip
_FACTS = _COLUMNS.index("tracks")  # the first column of what stands beside a figure


def csv_text(board: Board) -> str:
    """Return the leaderboard as CSV, a line for each system, source, metric and aggregation."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in (*board.measured, *board.published):
        for (source, metric, aggregation), cell in row.cells.items():
            facts = row.facts(source)
            writer.writerow(
                [
                    _tame(row.name), row.kind, _tame(source), metric, aggregation,
                    *(_number(v) for v in (cell.value, cell.low, cell.high, None)),
                    *(_tame(str(facts[name])) for name in _COLUMNS[_FACTS:]),
                ]
            )  # fmt: skip
    for group in board.seeds:
        origin = f"mean over the seeds of {', '.join(group.runs.values())}"
        for (source, metric, aggregation), spread in group.cells.items():
            row = [_tame(group.name), "seeds", _tame(source), metric, aggregation]
            row += [_number(spread.mean), "", "", _number(spread.sd)]
            data = board.lead.data
            facts = {"tracks": len(board.lead.tracks), "data": data.name, "split": data.split,
                     "data_hash": data.hash, "origin": origin}  # fmt: skip
            row += [_tame(str(facts.get(name, ""))) for name in _COLUMNS[_FACTS:]]
            writer.writerow(row)
    return buffer.getvalue()


def _tame(text: str) -> str:
    """Return ``text`` so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def json_text(board: Board) -> str:
    """Return the whole board as JSON: definitions, systems, tracks, tests."""
    return json.dumps(board.as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def markdown_text(board: Board) -> str:
    """Return the SDR and uSDR tables as Markdown, with what their figures mean below them."""
    lines = [*_markdown_table(board, "SDR"), _md(board.caption), ""]
    if board.comparable:
        lines += ["As published by:", ""]
        lines += [f"{n}. {_md(_publication(t))}, <{t.url}>"
                  for n, t in enumerate(board.comparable, 1)]  # fmt: skip
        lines.append("")
    for group in board.seeds:
        figure = group.cells[AVERAGE, "SDR", "median"]
        if figure.mean is not None and figure.sd is not None:
            lines += [f"{_md(group.name)} over {len(group.runs)} seeds "
                      f"({', '.join(map(str, group.runs))}): average SDR {figure.mean:.2f} ± "
                      f"{figure.sd:.2f} dB (mean ± standard deviation)", ""]  # fmt: skip
    if any(row.cells.get((AVERAGE, "uSDR", "mean"), Cell(None)).value for row in board.measured):
        lines += [*_markdown_table(board, "uSDR"), _md(board.lead.definitions["uSDR"]), ""]
    return "\n".join(lines)


def _markdown_table(board: Board, metric: str) -> list[str]:
    how = usual_aggregation(metric)
    head = ["system", *board.sources, "average"]
    lines = [
        f"### {_md(board.title)}: {metric} in dB, {aggregation_of(metric, how)}",
        "",
        "| " + " | ".join(_md(h) for h in head) + " |",
        "|---" + "|---:" * (len(head) - 1) + "|",
    ]
    rows = [*board.measured, *(r for r in board.published if _has(r, metric, how))]
    for row in rows:
        mark = f" *(as published, {board.number(row)})*" if row.kind == "published" else ""
        cells = " | ".join(_figures(board, row, metric))
        lines.append(f"| {_md(row.name)}{mark} | {cells} |")
    return [*lines, ""]


def _publication(table: PublishedTable) -> str:
    """Return where figures of others are from, and what they are."""
    return f"{table.title}: {table.source}; {table.metric}; {table.aggregation}; {table.data}"


def _has(row: Row, metric: str, how: str) -> bool:
    return any(key[1:] == (metric, how) for key in row.cells)


def _md(text: str) -> str:
    for character in "\\`*_{}[]<>|#~&":
        text = text.replace(character, f"&#{ord(character)};" if character in "|<>&" else
                            f"\\{character}")  # fmt: skip
    return " ".join(text.split())


def latex_text(board: Board) -> str:
    """Return the SDR table as LaTeX (package booktabs), its definition in the caption."""
    columns = "l" + "r" * (len(board.sources) + 1)
    head = " & ".join(["System", *(_tex(s) for s in board.sources), "average"])
    body = [f"{_tex(r.name)} & {' & '.join(_figures(board, r))} \\\\" for r in board.measured]
    published = [row for row in board.published if _has(row, "SDR", "median")]
    if published:
        body.append("\\midrule")
        body += [f"{_tex(r.name)}$^{{\\dagger {board.number(r)}}}$ & "
                 f"{' & '.join(_figures(board, r))} \\\\" for r in published]  # fmt: skip
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


_TEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_",
    "{": "\\{", "}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return " ".join("".join(_TEX.get(character, character) for character in text).split())


def _figures(board: Board, row: Row, metric: str = "SDR") -> Sequence[str]:
    how = usual_aggregation(metric)
    cells = [row.cells.get((s, metric, how)) for s in (*board.sources, AVERAGE)]
    return ["-" if cell is None or cell.value is None else f"{cell.value:.2f}" for cell in cells]
