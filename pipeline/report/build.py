"""From a run's folder to its report."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasaft.errors import DataError
from lasaft.files import atomic_write_bytes, read_steadily
from pipeline.cluster.progress import say
from pipeline.cluster.run_store import RunStore
from pipeline.config import RunConfig, from_json
from pipeline.config.addresses import shown
from pipeline.config.command_line import command_line
from pipeline.config.folders import RunFolder, added_runs
from pipeline.evaluation.excerpts import EXCERPTS
from pipeline.evaluation.summary import Summary, read_summary, require_scores
from pipeline.report.board import BOUNDS, Board, build_board
from pipeline.report.comparisons import read_entry
from pipeline.report.media import Shelf, read_songs
from pipeline.report.page import render_page
from pipeline.report.tables import csv_text, json_text, latex_text, markdown_text
from pipeline.report.training_curves import read_curves

AUDIO = "audio"  # folder beside the page, of what is heard and seen on demand


@dataclass(frozen=True)
class ReportResult:
    """The page, the texts of the report (``audio`` beside them is on the page), what was scored."""

    page: Path
    files: list[Path]
    summaries: list[Summary]
    board: Board


@dataclass(frozen=True)
class _Scored:
    """A system that a run has scored: ``folder`` holds its scores."""

    run: RunFolder
    folder: Path
    summary: Summary

    def renamed(self, found: Sequence[_Scored]) -> Summary:
        """Return its summary; a name that others have too says of which run and folder it is."""
        name = self.summary.name
        alike = [one for one in found if one.summary.name == name and one is not self]
        marks = [self.run.shown] if any(one.run is not self.run for one in alike) else []
        marks += [self.folder.name] if any(one.run is self.run for one in alike) else []
        return self.summary.model_copy(
            update={"name": f"{name} ({', '.join(marks)})"} if marks else {}
        )


def write_report(config: RunConfig) -> ReportResult:
    """Write the report and return its files; the same inputs give the same bytes.

    Raises:
        DataError: nothing is scored yet, or a file that the report needs is damaged.
    """
    folder = RunFolder.of(config)
    found = _scored(folder) if folder.scores.is_dir() or not config.add else []
    own = {one.folder.name for one in found}
    for run in added_runs(config):
        RunStore(run).pull("scores")
        found += _but_bounds(_scored(run), found)
    entries = {one.folder: read_entry(one.folder, one.renamed(found)) for one in found}
    summaries = [entry.summary for entry in entries.values()]
    lead = _lead(summaries[: len(own)] or summaries, config)
    board = build_board(list(entries.values()), lead)
    for line in _unfinished(folder.scores, own):
        board.left_out.append(line)
        say(f"report: {line}")
    played = {r.name for r in board.measured if r.kind in ("model", "estimates")}
    labels = {f.name: e.name for f, e in list(entries.items())[: len(own)] if e.name in played}
    excerpts, audio = folder.estimates / EXCERPTS / lead.data.split, folder.report / AUDIO
    shelf = Shelf(None if config.evaluate.single_file else audio)
    commands, settings = _origin(config, lead)
    page = render_page(
        board,
        _without_secrets(settings),
        songs=read_songs(excerpts, labels, config.evaluate.report_audio, shelf),
        single_file=config.evaluate.single_file,
        training=read_curves(folder.metrics),
        provenance=list(_provenance(board)),
        commands=_without_secrets(commands),
    )
    texts = {
        "index.html": page,
        "leaderboard.csv": csv_text(board),
        "leaderboard.json": json_text(board),
        "leaderboard.md": markdown_text(board),
        "leaderboard.tex": latex_text(board),
    }
    for name, text in texts.items():
        atomic_write_bytes(folder.report / name, text.encode())
    shelf.clear(audio)
    paths = [folder.report / name for name in texts]
    return ReportResult(paths[0], paths, summaries, board)


def _scored(run: RunFolder) -> list[_Scored]:
    """Return the systems that a run has scored.

    Raises:
        DataError: there is none, or a file is damaged.
    """
    found = []
    for file in sorted(run.scores.glob("*/summary.json")):
        summary = read_summary(file)
        require_scores(file, summary)
        found.append(_Scored(run, file.parent, summary))
    if not found:
        reason = "no summary.json of a scored system in it; run jobs.evaluate first"
        raise DataError(f"{run.scores}: {reason}")
    return found


def _but_bounds(more: Sequence[_Scored], found: Sequence[_Scored]) -> Iterator[_Scored]:
    """Yield what another run has scored, without the bounds that are there of the same songs."""
    there = {(one.summary.system.kind, one.summary.data.hash) for one in found}
    for one in more:
        kind, data = one.summary.system.kind, one.summary.data.hash
        if kind not in BOUNDS or (kind, data) not in there:
            yield one


def _unfinished(scores: Path, finished: Collection[str]) -> Iterator[str]:
    """Yield a line for each system that has score files but no summary: it is not whole."""
    folders = sorted(path for path in scores.iterdir() if path.is_dir()) if scores.is_dir() else []
    for folder in folders:
        done = len(list(folder.glob("*/*.json")))
        if folder.name not in finished and done:
            yield (
                f"{folder.name}: {done} songs are scored, but there is no summary of a whole run; "
                "python -m jobs.evaluate goes on with it, or takes another system's files over "
                "with --scores_dir"
            )


def _lead(summaries: list[Summary], config: RunConfig) -> Summary:
    """Return the summary of the run's own system, or else of the best that is no bound.

    The best is sought on the songs on which most systems were scored.
    """
    split = [s for s in summaries if s.data.split == config.evaluate.split] or summaries
    kinds = (("model", "estimates"), ("scores",))
    groups = [[s for s in split if s.system.kind in kind] for kind in kinds]
    systems = next((group for group in groups if group), split)
    named = [s for s in systems if s.name == config.tracking.run_id]
    own = _checkpoint_hash(config)
    trained = [s for s in systems if own is not None and s.system.checkpoint == own]

    def rank(summary: Summary) -> tuple[int, float]:
        best = summary.average["SDR"].median
        alike = sum(other.data == summary.data for other in split)
        return alike, float("-inf") if best is None else best

    return (named or trained or [max(systems, key=rank)])[0]


def _checkpoint_hash(config: RunConfig) -> str | None:
    """Return the hash of the run's checkpoint, without reading its weights."""
    folder = RunFolder.of(config).evaluated
    try:
        return json.loads(read_steadily(folder / "config.json"))["hash"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # evaluated elsewhere: the report needs no checkpoint


def _provenance(board: Board) -> Iterator[tuple[str, str]]:
    lead, data = board.lead, board.lead.data
    yield "data", f"{data.name}, {data.split} split, {len(lead.tracks)} tracks"
    yield "data hash", data.hash
    if lead.system.variant:
        yield "network", lead.system.variant
    if lead.system.checkpoint:
        yield "checkpoint hash", lead.system.checkpoint
    yield "scenario", lead.definitions["scenario"]
    if lead.system.seed is not None:
        yield "seed", str(lead.system.seed)
    for name, value in (*lead.system.provenance.items(), *lead.system.settings.items()):
        if isinstance(value, str | int | float | bool):
            yield name.replace("_", " "), _without_secrets(str(value))
    for name, value in lead.system.provenance.get("card", {}).items():
        if name not in ("checkpoint", "code_commit", "seed", "training_data_hash"):  # told above
            yield name.replace("_", " "), _without_secrets(str(value))
    for record in lead.verified:
        found = f"{record['track']}: largest difference {record['largest_db']:.1e} dB"
        yield "checked with museval itself", found


def _origin(config: RunConfig, lead: Summary) -> tuple[list[str], Any]:
    """Return the commands that give the leading system's scores again, and its configuration.

    A run from songs to scores is one command. A checkpoint that was evaluated elsewhere is two:
    its record says how it was trained.
    """
    recorded = RunFolder.of(config).config
    own = _checkpoint_hash(config)
    if recorded.is_file() and own is not None and lead.system.checkpoint == own:
        whole = from_json(read_steadily(recorded), str(recorded)).model_dump(mode="json")
        return [command_line("run", whole)], whole
    trained = lead.system.config
    commands = [command_line("train", trained)] if trained is not None else []
    return [*commands, *([lead.command] if lead.command else [])], trained


def _without_secrets(value: Any) -> Any:
    """Return JSON ``value`` without the secrets of any address in it."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {name: _without_secrets(item) for name, item in value.items()}
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value
