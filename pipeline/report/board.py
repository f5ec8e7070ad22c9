"""The leaderboard itself: measured and published systems, intervals, tests, in one structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lasaft.card import CARD_FIELDS, NOT_STATED
from pipeline.evaluation.aggregate import averaged, difference
from pipeline.evaluation.scenarios import single_sources
from pipeline.evaluation.score_files import ALL_METRICS, LEAK
from pipeline.evaluation.summary import AGAINST_OTHERS, AGGREGATION, METRIC, DataIdentity, Summary
from pipeline.report.comparisons import (
    AVERAGE,
    Comparison,
    Entry,
    Silence,
    compare,
    places,
    silences,
)
from pipeline.report.seeds import SeedGroup, seed_groups
from pipeline.report.statistics import METHOD, How, Interval, average_interval, interval

ORACLES = ("irm", "ibm", "oracle")
BOUNDS = ("mixture", *ORACLES)  # they do not compete
AGGREGATIONS: tuple[How, ...] = ("median", "mean")
# What published figures with this convention are: metric, and how it is taken over tracks.
_CONVENTIONS = {"museval-median": ("SDR", "median"), "usdr-mean": ("uSDR", "mean")}
_PUBLISHED = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Cell:
    """A figure in dB with its confidence interval, where there is one, over so many tracks."""

    value: float | None
    low: float | None = None
    high: float | None = None
    tracks: int | None = None


@dataclass(frozen=True)
class Row:
    """A system: ``cells[source, metric, aggregation]``; ``origin`` says where they are from.

    Of measured systems ``silences`` says what each leaves out, and ``places``, of those that
    compete, the best and the worst place that the tests leave open; both by SDR, for each column.
    """

    name: str
    kind: str
    origin: str
    cells: dict[tuple[str, str, str], Cell]
    summary: Summary | None = None
    data: str = ""
    note: str = ""
    silences: dict[str, Silence] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def views(self) -> list[tuple[str, str]]:
        """Metric and aggregation of which this row has any figure."""
        found = (key[1:] for key, cell in self.cells.items() if cell.value is not None)
        return list(dict.fromkeys(found))

    def has(self, column: str) -> bool:
        """Whether there is a median SDR in a column."""
        cell = self.cells.get((column, "SDR", "median"))
        return cell is not None and cell.value is not None

    @property
    def silence_gain(self) -> float | None:
        """The most that a source gains by the frames that are left out, where that is marked."""
        return max((one.gain for one in self.silences.values() if one.marked), default=None)

    def facts(self, source: str) -> dict[str, Any]:
        """Return what stands beside each figure of ``source`` in a table for programs."""
        s = self.summary
        if s is None:
            names = (
                "tracks",
                "failed",
                "left_out_frames",
                "silence_gain_db",
                "place",
                "frames",
                "nan_frames",
                "data_hash",
                "split",
                "checkpoint",
            )
            facts = {**dict.fromkeys(names, ""), "data": self.data, "origin": self.origin}
            return facts | self.card
        silence, place = self.silences.get(source), self.places.get(source)
        nan = sum(s.nan_frames.values()) if source == AVERAGE else s.nan_frames.get(source, 0)
        return {
            "tracks": len(s.tracks), "failed": len(s.failed), "frames": s.frames,
            "left_out_frames": silence and silence.frames,
            "silence_gain_db": silence and silence.gain,
            "place": place and f"{place[0]} to {place[1]}",
            "nan_frames": nan, "data": s.data.name, "data_hash": s.data.hash,
            "split": s.data.split, "checkpoint": s.system.checkpoint or "", "origin": self.origin,
            **self.card,
        }  # fmt: skip

    @property
    def card(self) -> dict[str, str]:
        """Where the system's weights come from, as far as it is stated."""
        card = {} if self.summary is None else self.summary.system.provenance.get("card", {})
        return {name: str(card.get(name, NOT_STATED)) for name in CARD_FIELDS[1:]}


@dataclass(frozen=True)
class PublishedTable:
    """Figures of one publication with one convention."""

    key: str
    title: str
    source: str
    url: str
    convention: str
    metric: str
    aggregation: str
    data: str
    rows: list[dict[str, Any]]

    @property
    def columns(self) -> list[str]:
        """The sources, and the average, for which any row has a figure."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != "system"))

    def comparable_with(self, data: DataIdentity) -> bool:
        """Whether figures on ``data`` with the same convention may stand beside these."""
        if self.convention == "usdr-mean":  # the 16-bit songs of MUSDB18-HQ; MUSDB18 has AAC ones
            return data.comparable and data.kind == "MUSDB18-HQ"
        return self.convention in _CONVENTIONS and data.comparable


@dataclass(frozen=True)
class Board:
    """All that the report and its tables show about scores."""

    lead: Summary
    sources: list[str]
    measured: list[Row]
    published: list[Row]
    tables: list[PublishedTable]
    tests: list[Comparison]
    seeds: list[SeedGroup]
    left_out: list[str] = field(default_factory=list)

    @property
    def comparable(self) -> list[PublishedTable]:
        """The publications whose figures may stand in one table with ours."""
        return [table for table in self.tables if table.comparable_with(self.lead.data)]

    def number(self, row: Row) -> int:
        """Return which of the comparable publications a published row is from, the first 1."""
        return 1 + [table.title for table in self.comparable].index(row.note)

    @property
    def others(self) -> list[PublishedTable]:
        """The publications about other songs or with other conventions."""
        return [table for table in self.tables if table not in self.comparable]

    @property
    def title(self) -> str:
        """The songs that the figures are about."""
        return f"{self.lead.data.name}, {self.lead.data.split}, {self.lead.songs}"

    @property
    def caption(self) -> str:
        """Metric, aggregation and songs of the short tables."""
        return (
            f"{METRIC}, {AGGREGATION}; data {self.lead.data.hash[:12]}. Average: "
            f"{self.lead.definitions['average'].lower()}"
        )

    def contrary(self, test: Comparison) -> float | None:
        """Return how far a test's first system is above the second by median SDR.

        None unless the medians say the opposite of the test's own difference.
        """
        rows = {row.name: row for row in self.measured}
        one, other = (
            rows[name].cells.get((test.source, "SDR", "median"), Cell(None)).value
            for name in (test.first, test.second)
        )
        medians = difference(one, other)
        return medians if medians is not None and medians * test.difference < 0 else None

    @property
    def baseline(self) -> Summary | None:
        """The mixture as the estimate of every source, where it was scored on the same songs."""
        found = (r.summary for r in self.measured if r.kind == "mixture" and r.summary)
        return next(filter(self.lead.is_beside, found), None)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "format": 1,
            "title": self.title,
            "metric": METRIC,
            "definitions": {**self.lead.definitions, "statistics": METHOD},
            "data": self.lead.data.model_dump(),
            "systems": [_row_json(row) for row in self.measured],
            "published": {
                "comparable": bool(self.comparable),
                "tables": [{**asdict(t), "comparable": t in self.comparable} for t in self.tables],
            },
            "tests": [asdict(test) for test in self.tests],
            "seeds": [group.as_json() for group in self.seeds],
            "left_out": self.left_out,
        }


def _row_json(row: Row) -> dict[str, Any]:
    assert row.summary is not None
    figures = [
        {"source": s, "metric": m, "aggregation": a, **asdict(cell)}
        for (s, m, a), cell in row.cells.items()
    ]
    shown = {"system", "scenario", "frames", "nan_frames", "verified", "tracks", "failed"}
    kept = row.summary.model_dump(include=shown)
    kept |= {"silences": {s: asdict(one) for s, one in row.silences.items()}, "places": row.places}
    return {"name": row.name, "kind": row.kind, "figures": figures, **kept}


def build_board(entries: Sequence[Entry], lead: Summary) -> Board:
    """Return the board of all systems that were scored on the same songs as ``lead``.

    A system with other sources has figures where it has the lead's sources; its SIR and SAR are
    left out, because they depend on what the sources were scored against.
    """
    same: list[Entry] = []
    left_out: list[str] = []
    for entry in entries:
        s = entry.summary
        if s.data == lead.data and set(s.sources) & set(lead.sources):
            same.append(entry)
        else:
            which = f"{s.data.name}, {s.data.split}, {', '.join(s.sources)}"
            left_out.append(f"{s.name}: scored on other songs or sources ({which})")
    tables = read_published()
    shown = [table for table in tables if table.comparable_with(lead.data)]
    published = (_published_row(t, row, lead.sources) for t in shown for row in t.rows)
    tested = [entry for entry in same if entry.summary.system.kind not in ORACLES]
    tested.sort(key=lambda one: (one.summary is not lead, one.summary.system.kind == "mixture"))
    tests = compare(tested)
    rows = [
        replace(
            _measured_row(entry.summary, lead),
            silences=silences(entry, [other for other in same if other is not entry]),
        )
        for entry in same
    ]
    for column in (*lead.sources, AVERAGE):
        competing = {r.name: r for r in rows if r.kind not in BOUNDS and r.has(column)}
        for name, place in places(competing, tests, column).items():
            competing[name].places[column] = place
    return Board(
        lead=lead,
        sources=list(lead.sources),
        measured=sorted(rows, key=by_average),
        published=sorted(published, key=by_average),
        tables=tables,
        tests=tests,
        seeds=seed_groups([entry.summary for entry in same]),
        left_out=left_out,
    )


def column(summary: Summary, lead: Summary, source: str, metric: str) -> dict[str, float | None]:
    """Return the figure of each track, empty where it cannot stand beside the lead's."""
    alike = summary.sources == lead.sources and summary.scenario == lead.scenario
    if source not in summary.sources or not (alike or metric not in AGAINST_OTHERS):
        return {}
    return summary.column(source, metric)


def by_average(row: Row, metric: str = "SDR", how: How = "median") -> tuple[bool, float, str]:
    """Return the key that sorts rows by their average, the best first.

    Those without one come after them, by the mean of what they have.
    """
    found = {key[0]: cell.value for key, cell in row.cells.items() if key[1:] == (metric, how)}
    average = found.pop(AVERAGE, None)
    known = [value for value in found.values() if value is not None]
    rest = float(np.mean(known)) if known else float("-inf")
    return average is None, -(rest if average is None else average), row.name


def _measured_row(summary: Summary, lead: Summary) -> Row:
    cells: dict[tuple[str, str, str], Cell] = {}
    for metric in ALL_METRICS:
        known = [s for s in lead.sources if column(summary, lead, s, metric)]
        known = [s for s in known if metric != LEAK or summary.count(s, metric)]
        for source in known:
            values = list(summary.column(source, metric).values())
            for how in AGGREGATIONS:
                value = getattr(summary.scores[source][metric], how)
                count = summary.count(source, metric)
                cells[source, metric, how] = _cell(value, interval(values, how), count)
        counted = single_sources(known)
        if (
            set(counted)
            == set(single_sources(summary.sources))
            == set(single_sources(lead.sources))
        ):
            sounding = averaged(summary.scores)
            table = [list(summary.column(source, metric).values()) for source in sounding]
            for how in AGGREGATIONS:
                value = getattr(summary.average[metric], how)
                cells[AVERAGE, metric, how] = _cell(value, average_interval(table, how))
    adopted = "songs" in summary.system.settings
    origin = "scores of others" if adopted else "measured by this code"
    return Row(summary.name, summary.system.kind, origin, cells, summary)


def _cell(value: float | None, ends: Interval | None, tracks: int | None = None) -> Cell:
    low, high = (ends.low, ends.high) if ends else (None, None)
    return Cell(value, low, high, tracks)


def _published_row(table: PublishedTable, row: dict[str, Any], sources: Sequence[str]) -> Row:
    cells = {
        (source, *_CONVENTIONS[table.convention]): Cell(float(row[source]))
        for source in (*sources, AVERAGE)
        if source in row
    }
    origin = f"{table.source} ({table.url})"
    return Row(row["system"], "published", origin, cells, data=table.data, note=table.title)


def read_published() -> list[PublishedTable]:
    """Read the figures of others from the data file beside this module."""
    content = yaml.safe_load(_PUBLISHED.read_text(encoding="utf-8"))
    return [PublishedTable(**table) for table in content["tables"]]
