"""The outcome of a search: the ranked trials, the winner, its settings as a preset, the front."""

from __future__ import annotations

import csv
import io
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lasaft.errors import StageError
from lasaft.files import atomic_write_bytes, atomic_write_json, read_json
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder, below
from pipeline.config.roles import names
from pipeline.config.search import OBJECTIVES
from pipeline.search.candidates import Checker
from pipeline.search.space import Settings, Space
from pipeline.search.trials import Trial, settings_of, shown

_FIGURES = ("sdr", "val_loss", "parameters", "seconds")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    trial: Trial
    repeats: tuple[float, ...] = ()  # the first objective of the same settings with other seeds
    # Whether no other trial is better in one objective and not worse in the others.
    on_front: bool = False
    rank: int | None = None  # its place, from 1; None for a trial without a result

    @property
    def mean(self) -> float | None:
        """The mean over the repeats."""
        return statistics.fmean(self.repeats) if self.repeats else None

    @property
    def spread(self) -> float | None:
        """The standard deviation over the repeats; one repeat has none."""
        return statistics.stdev(self.repeats) if len(self.repeats) > 1 else None


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search."""

    folder: Path
    space: Space  # what was searched
    objectives: tuple[str, ...]  # what it was about, the first one ranks
    rows: tuple[Row, ...]  # the trials, best first
    winner: Row  # the first of them
    trials: tuple[Trial, ...]  # every trial, with the repeats
    note: str  # why not all trials have ended, if so

    @property
    def preset(self) -> Path:
        """The winner's settings, for ``jobs.train --preset``."""
        return self.folder / "best.yaml"

    @property
    def page(self) -> Path:
        """The search's report."""
        return self.folder / "report.html"


def training_command(config: RunConfig, result: SearchResult) -> str:
    """Return the command that trains the winner, on the search's shards, beside the search."""
    run = RunFolder.of(config)
    words = ["--preset", result.preset, "--shards_dir", run.shards_address or run.shards]
    words += ["--output_dir", below(run.address, "best") if run.address else run.root / "best"]
    return shlex.join(["python", "-m", "jobs.train", *map(str, words)])


def ranked(trials: Sequence[Trial], objective: str) -> list[Trial]:
    """Return the trials that have a figure, best first; whole ones before those cut short."""
    sign = -1.0 if OBJECTIVES[objective] else 1.0

    def key(trial: Trial) -> tuple[bool, float, int]:
        figure = trial.figure(objective)
        assert figure is not None
        return trial.status != "done", sign * figure, trial.number

    able = ("done", "stopped", "running")
    found = [one for one in trials if one.status in able and one.figure(objective) is not None]
    return sorted(found, key=key)


def front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Return the trials that no other one beats in every objective (or equals and beats in one)."""
    signs = [-1.0 if OBJECTIVES[name] else 1.0 for name in objectives]
    points: list[tuple[Trial, list[float]]] = []
    for trial in trials:
        figures = [trial.figure(name) for name in objectives]
        known = [figure for figure in figures if figure is not None]
        if len(known) == len(figures):
            points.append((trial, [sign * x for sign, x in zip(signs, known, strict=True)]))
    return [
        trial for trial, mine in points if not any(_dominates(other, mine) for _, other in points)
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def conclude(config: RunConfig, space: Space, trials: Sequence[Trial], note: str) -> SearchResult:
    """Rank the trials and write the table, the winner's settings and the front.

    Raises:
        StageError: no trial has a result.
    """
    names = config.search.objectives
    first = names[0]
    own = [trial for trial in trials if not trial.repeat]
    order = ranked(own, first)
    if not order:
        reasons = [f"  trial {one.name}: {one.reason or one.status}" for one in own[:20]]
        raise StageError("\n".join(["search: no trial has a result:", *reasons, note]).rstrip())
    ends = [one for one in order if one.status == "done"] or order
    best = front(ends, names) if len(names) > 1 else []
    rows = [Row(trial, _repeats(trial, trials, first), trial in best) for trial in order]
    if repeated := [row for row in rows if row.repeats]:
        sign = 1.0 if OBJECTIVES[first] else -1.0
        winner = max(repeated, key=lambda row: sign * statistics.fmean(row.repeats))
        rows = [winner, *(row for row in rows if row is not winner)]
    rows = [replace(row, rank=rank) for rank, row in enumerate(rows, 1)]
    rows += [Row(trial) for trial in own if trial not in order]
    root = RunFolder.of(config).search
    result = SearchResult(root, space, names, tuple(rows), rows[0], tuple(trials), note)
    _write(config, result)
    return result


def _repeats(trial: Trial, trials: Sequence[Trial], objective: str) -> tuple[float, ...]:
    """Return the figures of the finished repeats of ``trial``."""
    return tuple(
        figure
        for one in trials
        if one.repeat and one.number == trial.number and one.status == "done"
        if (figure := one.figure(objective)) is not None
    )


def _write(config: RunConfig, result: SearchResult) -> None:
    root, names = result.folder, result.objectives
    rows = [_as_data(row) for row in result.rows]
    winner = result.winner.trial
    atomic_write_json(
        root / "results.json",
        {
            "space": result.space.name, "objectives": list(names), "winner": winner.name,
            "note": result.note, "trials": rows,
            "repeats": [_as_data(Row(one)) for one in result.trials if one.repeat],
        },
    )  # fmt: skip
    atomic_write_bytes(root / "results.csv", _csv_text(rows).encode())
    atomic_write_json(root / "winner.json", {"trial": winner.name, "settings": winner.settings})
    atomic_write_bytes(result.preset, _preset_text(config, result, winner).encode())
    fronts = root / "front"
    for old in fronts.glob("*.yaml"):
        old.unlink()
    for trial in [row.trial for row in result.rows if row.on_front]:
        text = _preset_text(config, result, trial)
        atomic_write_bytes(fronts / f"{trial.name}.yaml", text.encode())


def _as_data(row: Row) -> dict[str, Any]:
    trial = row.trial
    best = trial.best
    return {
        "rank": row.rank, "trial": trial.name, "status": trial.status, "reason": trial.reason,
        "settings": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in trial.settings.items()
        },
        **{name: trial.figure(name) for name in _FIGURES},
        "sources": best.sources if best else {}, "best_epoch": best.epoch if best else None,
        "epochs": trial.epochs, "training_seconds": trial.seconds, "seed": trial.config.train.seed,
        "repeats": list(row.repeats), "mean": row.mean, "spread": row.spread,
        "on_front": row.on_front,
    }  # fmt: skip


def _csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table as CSV, a column for each option."""
    options = list(dict.fromkeys(name for row in rows for name in row["settings"]))
    flat = ("rank", "trial", "status", *_FIGURES, "best_epoch", "epochs", "mean", "spread")
    text = io.StringIO()
    names = [*flat, *options, "reason"]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {name: shown(value) for name, value in row["settings"].items()})
    return text.getvalue()


def winning_config(config: RunConfig) -> RunConfig:
    """Return ``config`` with the settings of the search that has ended in its folder."""
    from pipeline.search.space_reader import read_space

    assert config.search.space is not None, "a search without a space"
    file = RunFolder.of(config).search / "winner.json"
    settings = settings_of(read_json(file, {"settings"}, "python -m jobs.tune writes it again"))
    return with_settings(config, read_space(config.search.space), settings)


def with_settings(config: RunConfig, space: Space, settings: Settings) -> RunConfig:
    """Return ``config`` with the settings of a trial."""
    found = Checker(config, space).settle(settings, sizes=False).config
    return config.model_copy(
        update={"model": found.model, "train": found.train, "data": found.data}
    )


def _preset_text(config: RunConfig, result: SearchResult, trial: Trial) -> str:
    """Return a preset with all settings of a trial's training, with the run's own epochs."""
    whole = with_settings(config, result.space, trial.settings)
    tree: dict[str, dict[str, Any]] = {}
    for group in ("model", "train", "data"):
        section = getattr(whole, group)
        fields = type(section).model_fields
        values = section.model_dump(mode="json")
        tree[group] = {
            name: "None" if values[name] is None else values[name]
            for name in (names("draw") if group == "data" else fields)
            if values[name] is not None or fields[name].default is not None
        }
    figures = ", ".join(
        f"{name} {shown(figure)}"
        for name in result.objectives
        if (figure := trial.figure(name)) is not None
    )
    settings = " ".join(f"{name}={shown(value)}" for name, value in trial.settings.items())
    return (
        f"# Trial {trial.name} of a search over {result.space.name}: {figures} in validation.\n"
        f"# {settings}\n{yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}"
    )
