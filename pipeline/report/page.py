"""The report as one HTML page; beside it lie at most its sounds."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.evaluation.aggregate import difference
from pipeline.evaluation.scenarios import single_sources
from pipeline.evaluation.score_files import ALL_METRICS, LEAK
from pipeline.evaluation.summary import AGGREGATION, LARGEST_DB, METRIC, aggregation_of, unit
from pipeline.report.board import AGGREGATIONS, BOUNDS, ORACLES, Board, Row, by_average, column
from pipeline.report.comparisons import AVERAGE, MARKED_DB
from pipeline.report.media import RANGE_DB
from pipeline.report.plots import SERIES, strip, ticks
from pipeline.report.statistics import CONFIDENCE, FEWEST_TRACKS, METHOD

_METRIC_WORDS = {
    "SDR": "signal to distortion, also cSDR; vocals sound as good as this says",
    "ISR": "source image to spatial distortion",
    "SIR": "source to interference",
    "SAR": "source to artifacts",
    "uSDR": "signal to distortion of a whole song, MDX",
    "SI-SDR": "scale-invariant signal to distortion of a whole song",
    "SI-SAR": "what is of no source, in a whole song; drums and bass sound as good as this says",
    "logWMSE": "error weighted as ears hear, in a whole song",
    "bleedless": "how little else is heard in a whole song, of 100",
    "fullness": "how little is missing of a whole song, of 100",
    LEAK: "how far the estimate lies below the mixture where the source is silent",
}
_KIND_WORDS = {
    "model": "",
    "estimates": "estimates",
    "scores": "scores of others",
    "mixture": "does nothing",
    "irm": "ideal ratio mask, oracle",
    "ibm": "ideal binary mask, oracle",
    "oracle": "oracle",
    "published": "as published",
}
_HERE = Path(__file__).parent
_MOST_CARDS = 16


def render_page(board: Board, config: Mapping[str, Any] | None, **content: Any) -> str:
    """Return the page; the same inputs give the same bytes.

    Args:
        board: the scores.
        config: of the leading system, as JSON values.
        content: songs (:class:`Song`), training (:class:`Curves`), provenance (pairs of name and
            text) and commands, each from files, none from the clock or this machine.
    """
    lead = board.lead
    scored = {key[1] for row in board.measured for key in row.cells}
    metrics = [metric for metric in ALL_METRICS if metric in scored]
    many = len(board.sources) > SERIES
    columns = [AVERAGE, *board.sources] if many else [*board.sources, AVERAGE]
    return render(
        _HERE / "page.html.j2", metrics=metrics, aggregations=AGGREGATIONS, **content,
        board=board, columns=columns, many=many, definitions=lead.definitions,
        rows=sorted([*board.measured, *board.published], key=by_average),
        cards=_cards(board), pairs=_pairs(board), contradictions=list(_contradictions(board)),
        marked=MARKED_DB, tracks=_tracks(board),
        spread={m: found for m in metrics if (found := _spread(board, m)) is not None},
        nan_frames=lead.nan_frames if any(lead.nan_frames.values()) else {},
        has_oracle=any(row.kind in ORACLES for row in board.measured),
        config_text=config and json.dumps(config, indent=2, ensure_ascii=False),
        metric=METRIC, aggregation=AGGREGATION, aggregation_of=aggregation_of,
        unit=unit, method=METHOD,
        confidence=f"{CONFIDENCE:.0%}", fewest=FEWEST_TRACKS, range_db=f"{RANGE_DB:.0f}",
        largest=LARGEST_DB, metric_words=_METRIC_WORDS, kind_words=_KIND_WORDS, bounds=BOUNDS,
    )  # fmt: skip


def render(
    template: Path, *, metrics: Sequence[str] = (), aggregations: Sequence[str] = (), **content: Any
) -> str:
    """Return a page from ``template`` with this package's style and script in it.

    Everything is escaped but trusted text, because names come from users.

    Args:
        template: the file, which may include what lies beside it and in this package.
        metrics, aggregations: those between which the page switches.
        content: what else the template names.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]), undefined=StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    shared = {"metrics": metrics, "aggregations": aggregations, "series": SERIES}
    script = environment.get_template("page.js.j2").render()
    return environment.get_template(template.name).render(
        **shared,
        **content,
        style=trusted(environment.get_template("page.css.j2").render(shared)),
        script=trusted(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def trusted(text: str) -> Markup:
    """Return text that is not escaped on a page: plots and this program's own files alone."""
    return Markup(text)  # noqa: S704


def _cards(board: Board) -> list[dict[str, Any]]:
    row = next(row for row in board.measured if row.name == board.lead.name)
    base = board.baseline if board.baseline is not board.lead else None
    others = {**base.scores, AVERAGE: base.average} if base is not None else {}
    # Of many sources the average comes first; of more than a screen of them it is alone.
    count = len(board.sources)
    cards, shown = [], [AVERAGE] if count > SERIES else []
    for source in [*shown, *(board.sources if count <= _MOST_CARDS else [])]:
        cell = row.cells[source, "SDR", "median"]
        gain = difference(cell.value, others[source]["SDR"].median if source in others else None)
        cards.append({"source": source, **asdict(cell), "gain": gain})
    return cards


def _pairs(board: Board) -> list[dict[str, Any]]:
    """Return the tests of each pair of systems by source; those of the leading system first."""
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for test in board.tests:
        names = test.first, test.second
        pair = {"first": names[0], "second": names[1], "leads": board.lead.name in names}
        pair = pairs.setdefault(names, {**pair, "tests": {}, "against": {}})
        pair["tests"][test.source] = test
        if (medians := board.contrary(test)) is not None:
            pair["against"][test.source] = medians
    return list(pairs.values())


def _contradictions(board: Board) -> Iterator[str]:
    """Yield a sentence for each test that says with confidence what the medians do not."""
    for test in board.tests:
        medians = board.contrary(test)
        if test.better is None or medians is None:
            continue
        worse = test.second if test.better == test.first else test.first
        yield (
            f"By its medians {worse} is {abs(medians):.2f} dB above {test.better} in "
            f"{test.source}. On the frames that both have, {test.better} is the better one, by "
            f"{abs(test.difference):.2f} dB in a typical song."
        )


def _tracks(board: Board) -> list[dict[str, Any]]:
    """Return the songs of the leading system, the best average SDR first."""
    lead, base = board.lead, board.baseline
    others = {
        (s, metric): column(base, lead, s, metric) if base and base is not lead else {}
        for s in lead.sources
        for metric in ALL_METRICS
    }
    counted = single_sources(lead.sources)
    songs = []
    for track in lead.tracks:
        cells: dict[tuple[str, str], tuple[float | None, float | None]] = {}
        for metric in ALL_METRICS:
            for source in lead.sources:
                value = track.scores[source][metric]
                gain = difference(value, others[source, metric].get(track.name))
                cells[source, metric] = value, gain
            pairs = [cells[s, metric] for s in counted]
            cells[AVERAGE, metric] = _mean([v for v, _ in pairs]), _mean([g for _, g in pairs])
        song = {"name": track.name, "cells": cells, "frames": track.frames, "mark": ""}
        songs.append(song | {"nan": max(track.nan_frames.values())})
    songs.sort(key=lambda song: (-(song["cells"][AVERAGE, "SDR"][0] or -1e9), song["name"]))
    scored = [song for song in songs if song["cells"][AVERAGE, "SDR"][0] is not None]
    if len(scored) > 1:
        scored[0]["mark"], scored[-1]["mark"] = "best", "worst"
    return songs


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of a song's figures: of the sources that it has."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _spread(board: Board, metric: str) -> dict[str, Any] | None:
    """Return the box plots of every measured system that has the metric, the best first.

    None where no song has a number.
    """
    rows: list[tuple[Row, dict[str, list[float]]]] = []
    for row in sorted(board.measured, key=lambda row: by_average(row, metric)):
        assert row.summary is not None
        columns = {s: column(row.summary, board.lead, s, metric).values() for s in board.sources}
        numbers = {
            source: [v for v in values if v is not None and v <= LARGEST_DB]
            for source, values in columns.items()
        }
        if any(numbers.values()):
            rows.append((row, numbers))
    together = {s: [v for _, numbers in rows for v in numbers[s]] for s in board.sources}
    axes = {source: ticks(values) for source, values in together.items() if values}

    def tone(row: Row) -> str:
        return "lead" if row.summary is board.lead else "bound" if row.kind in BOUNDS else "other"

    cells = [
        (row, {s: (float(np.median(v)), trusted(strip(v, axes[s], tone(row))))
               for s, v in numbers.items() if v})
        for row, numbers in rows
    ]  # fmt: skip
    return {"axes": axes, "rows": cells} if rows else None
