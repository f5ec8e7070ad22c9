"""The report of a search: one HTML page in the leaderboard's style that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import pipeline.report
from lasaft.config import variant_name
from lasaft.files import atomic_write_bytes
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.config.search import OBJECTIVES, WATCHED
from pipeline.data.shards.manifest import read_manifest
from pipeline.report.plots import SERIES
from pipeline.search.importance import FEWEST_TRIALS, importances
from pipeline.search.plots import (
    COLOURED,
    LABELS,
    curves_plot,
    front_plot,
    importance_plot,
    parallel_plot,
)
from pipeline.search.ranking import Row, SearchResult, training_command
from pipeline.search.space import VARIANT
from pipeline.search.trials import shown

_REPORT = Path(pipeline.report.__file__).parent
_TABLE_1 = "lasaft-1"
# The paper's rows by the README's names of the networks.
_PAPER_ROWS = {
    "CUNET_TFC_FiLM": "FiLM CUNet",
    "CUNET_TFC_FiLM_TDF": "FiLM CUNet + TDF",
    "CUNET_TFC_FiLM_LaSAFT": "FiLM CUNet + LaSAFT",
    "CUNET_TFC_GPoCM": "GPoCM CUNet",
    "CUNET_TFC_GPoCM_TDF": "GPoCM CUNet + TDF",
    "CUNET_TFC_GPoCM_LaSAFT": "GPoCM CUNet + LaSAFT",
    "CUNET_TFC_GPoCM_LightSAFT": "GPoCM CUNet + LightSAFT",
}
# With more axes than this, parallel coordinates cannot be read.
_MOST_AXES = 12


def write_report(config: RunConfig, result: SearchResult) -> Path:
    """Write the search's page and return its path; the same trials give the same bytes."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, _REPORT]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = {"metrics": (), "aggregations": (), "series": SERIES}
    style = environment.get_template("page.css.j2").render(shared)
    script = environment.get_template("page.js.j2").render()
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html.j2").render(
        **_content(config, result),
        style=_trusted(style),
        script=_trusted(script),
        script_hash=script_hash,
        shown=shown,
        labels=LABELS,
        coloured=COLOURED,
    )
    atomic_write_bytes(result.page, page.encode())
    return result.page


def _trusted(text: str) -> Any:
    return Markup(text)  # noqa: S704 - rendered from this program's own files alone


def _content(config: RunConfig, result: SearchResult) -> dict[str, Any]:
    rows, first = result.rows, result.objectives[0]
    scored = [row for row in rows if row.trial.figure(first) is not None]
    options = list(dict.fromkeys(name for row in rows for name in row.trial.settings))
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
        "curves": _trusted(curves_plot(rows, first)),
        "importances": found,
        "fewest": FEWEST_TRIALS,
        "importance": _trusted(importance_plot(found)) if found else "",
        "parallel": _trusted(parallel_plot(rows, first))
        if len(scored) > 1 and 1 < len(options) <= _MOST_AXES
        else "",
        "fronts": {
            name: _trusted(front_plot(rows, first, name, lined=len(result.objectives) == 2))
            for name in result.objectives[1:]
            if name not in WATCHED
        },
        "paper": _paper(rows),
        "facts": _facts(config, result),
        "command": training_command(config, result),
        "preset": result.preset.read_text(encoding="utf-8"),
        "better": {name: "higher" if more else "lower" for name, more in OBJECTIVES.items()},
    }


def _sources(rows: Sequence[Row]) -> list[str]:
    best = [row.trial.best for row in rows]
    return list(dict.fromkeys(name for one in best if one is not None for name in one.sources))


def _paper(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the paper's Table 1 beside the trials, where each trial is one of its networks."""
    if not all(set(row.trial.settings) == {VARIANT} for row in rows):
        return {}
    text = (_REPORT / "published.yaml").read_text(encoding="utf-8")
    table = next(one for one in yaml.safe_load(text)["tables"] if one["key"] == _TABLE_1)
    published = {row["system"]: row for row in table["rows"]}
    mine = {row.trial.settings[VARIANT]: row for row in rows}
    lines = [
        {
            "name": _PAPER_ROWS[name],
            "paper": published.get(_PAPER_ROWS[name]),
            "row": mine.get(name),
        }
        for name in _PAPER_ROWS
    ]
    return {"table": table, "lines": lines, "columns": ("vocals", "drums", "bass", "other")}


def _facts(config: RunConfig, result: SearchResult) -> list[tuple[str, str]]:
    manifest = read_manifest(RunFolder.of(config).shards)
    search, model = config.search, config.model
    splits = [track.split for track in manifest.tracks]
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
        ("base settings", _base(config)),
    ]


def _base(config: RunConfig) -> str:
    names = ("batch_size", "lr", "optimizer", "train_loss", "seed")
    return ", ".join(f"{name} {shown(getattr(config.train, name))}" for name in names)
