"""The report of a search: one HTML page in the style of the leaderboard's, without other files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lasaft.config import variant_name
from lasaft.files import atomic_write_bytes
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.config.search import OBJECTIVES, WATCHED
from pipeline.data.shards.manifest import read_manifest
from pipeline.data.shards.store import shard_place
from pipeline.report.board import read_published
from pipeline.report.page import render, trusted
from pipeline.search import plots
from pipeline.search.importance import FEWEST_TRIALS, importances
from pipeline.search.ranking import Row, SearchResult, training_command
from pipeline.search.space import VARIANT
from pipeline.search.trials import shown

_TABLE_1 = "lasaft-1"
# The paper's names of the networks by the README's.
_PAPER_ROWS = {
    "CUNET_TFC_FiLM": "FiLM CUNet",
    "CUNET_TFC_FiLM_TDF": "FiLM CUNet + TDF",
    "CUNET_TFC_FiLM_LaSAFT": "FiLM CUNet + LaSAFT",
    "CUNET_TFC_GPoCM": "GPoCM CUNet",
    "CUNET_TFC_GPoCM_TDF": "GPoCM CUNet + TDF",
    "CUNET_TFC_GPoCM_LaSAFT": "GPoCM CUNet + LaSAFT",
    "CUNET_TFC_GPoCM_LightSAFT": "GPoCM CUNet + LightSAFT",
}
_MOST_AXES = 12


def write_report(config: RunConfig, result: SearchResult) -> Path:
    """Write the search's page and return its path; the same trials give the same bytes."""
    page = render(Path(__file__).with_name("page.html.j2"), **_content(config, result))
    atomic_write_bytes(result.page, page.encode())
    return result.page


def _content(config: RunConfig, result: SearchResult) -> dict[str, Any]:
    rows, first = result.rows, result.objectives[0]
    scored = [row for row in rows if row.trial.figure(first) is not None]
    options = list(dict.fromkeys(name for row in rows for name in row.trial.settings))
    readable = len(scored) > 1 and 1 < len(options) <= _MOST_AXES  # as parallel coordinates
    found = importances([row.trial for row in scored], first)
    return {
        "result": result,
        "rows": rows,
        "options": options,
        "sources": _sources(rows),
        "first": first,
        "repeated": any(row.repeats for row in rows),
        "counts": {
            status: sum(row.trial.status == status for row in rows)
            for status in ("done", "stopped", "failed", "running", "waiting")
        },
        "epochs": sum(trial.epochs for trial in result.trials),
        "whole": len(result.trials) * (config.search.trial_epochs or config.train.max_epochs),
        "curves": trusted(plots.curves_plot(rows, first)),
        "importances": found,
        "fewest": FEWEST_TRIALS,
        "importance": trusted(plots.importance_plot(found)) if found else "",
        "parallel": trusted(plots.parallel_plot(rows, first)) if readable else "",
        "fronts": {
            name: trusted(plots.front_plot(rows, first, name, lined=len(result.objectives) == 2))
            for name in result.objectives[1:]
            if name not in WATCHED
        },
        "paper": _paper(rows),
        "facts": _facts(config, result),
        "command": training_command(config, result),
        "preset": result.preset.read_text(encoding="utf-8"),
        "shown": shown,
        "labels": plots.LABELS,
        "coloured": plots.COLOURED,
        "better": {name: "higher" if more else "lower" for name, more in OBJECTIVES.items()},
    }


def _sources(rows: Sequence[Row]) -> list[str]:
    best = [row.trial.best for row in rows]
    return list(dict.fromkeys(name for one in best if one is not None for name in one.sources))


def _paper(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the paper's Table 1 beside the trials, where each trial is one of its networks."""
    if not all(set(row.trial.settings) == {VARIANT} for row in rows):
        return {}
    table = next(one for one in read_published() if one.key == _TABLE_1)
    published = {row["system"]: row for row in table.rows}
    mine = {row.trial.settings[VARIANT]: row for row in rows}
    lines = [
        {"name": system, "paper": published.get(system), "row": mine.get(variant)}
        for variant, system in _PAPER_ROWS.items()
    ]
    return {"table": table, "lines": lines, "columns": ("vocals", "drums", "bass", "other")}


def _facts(config: RunConfig, result: SearchResult) -> list[tuple[str, str]]:
    manifest = read_manifest(shard_place(RunFolder.of(config)))
    search, model = config.search, config.model
    splits = [track.split for track in manifest.tracks]
    base = ("batch_size", "lr", "optimizer", "train_loss", "seed")
    return [
        ("space", f"{result.space.name}: {', '.join(one.name for one in result.space.dimensions)}"),
        ("searcher", search.searcher or "chosen by the space"),
        ("scheduler", search.scheduler),
        ("objectives", ", ".join(result.objectives)),
        ("epochs of a trial", str(search.trial_epochs or config.train.max_epochs)),
        ("network of the base", variant_name(model)),
        ("spectrogram", f"n_fft {model.n_fft}, hop {model.hop_length}, {model.spec_type}"),
        ("tracks", f"{splits.count('train')} for training, {splits.count('valid')} for validation"),
        ("data hash", manifest.hash),
        ("base settings", ", ".join(f"{k} {shown(getattr(config.train, k))}" for k in base)),
    ]
