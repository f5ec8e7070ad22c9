"""The leaderboard for other programs and for papers: CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from pipeline.report.board import Board, Row
from pipeline.score_files import METRICS

_COLUMNS = (
    "system", "kind", "source", "metric", "aggregation", "value_db", "low_db", "high_db",
    "tracks", "frames", "nan_frames", "data", "data_hash", "split", "checkpoint", "origin",
)  # fmt: skip


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
                    *(_number(v) for v in (cell.value, cell.low, cell.high)),
                    *(_tame(str(facts[name])) for name in _COLUMNS[8:]),
                ]
            )  # fmt: skip
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
    """Return the SDR table as Markdown, with what its figures mean below it."""
    head = ["system", *board.sources, "average"]
    lines = [
        f"### {_md(board.title)}: SDR in dB",
        "",
        "| " + " | ".join(_md(h) for h in head) + " |",
        "|---" + "|---:" * (len(head) - 1) + "|",
    ]
    rows = [*board.measured, *(board.published if board.comparable else ())]
    for row in rows:
        mark = " *(as published)*" if row.kind == "published" else ""
        lines.append(f"| {_md(row.name)}{mark} | " + " | ".join(_sdr(board, row)) + " |")
    lines += ["", _md(board.caption), ""]
    if board.comparable:
        lines += [f"- {_md(t.title)}: {_md(t.source)}; {_md(t.metric)}; {_md(t.aggregation)}; "
                  f"{_md(t.data)}" for t in board.tables if t.comparable]  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def _md(text: str) -> str:
    for character in "\\`*_{}[]<>|#~&":
        text = text.replace(character, f"&#{ord(character)};" if character in "|<>&" else
                            f"\\{character}")  # fmt: skip
    return " ".join(text.split())


def latex_text(board: Board) -> str:
    """Return the SDR table as LaTeX (package booktabs), its definition in the caption."""
    columns = "l" + "r" * (len(board.sources) + 1)
    head = " & ".join(["System", *(_tex(s) for s in board.sources), "average"])
    body = [f"{_tex(r.name)} & {' & '.join(_sdr(board, r))} \\\\" for r in board.measured]
    if board.comparable and board.published:
        body.append("\\midrule")
        body += [f"{_tex(r.name)}$^\\dagger$ & {' & '.join(_sdr(board, r))} \\\\"
                 for r in board.published]  # fmt: skip
    note = " $^\\dagger$As published." if board.comparable and board.published else ""
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


def _sdr(board: Board, row: Row) -> Sequence[str]:
    cells: list[Any] = [
        row.cells.get((s, METRICS[0], "median")) for s in (*board.sources, "average")
    ]
    return ["-" if cell is None or cell.value is None else f"{cell.value:.2f}" for cell in cells]
