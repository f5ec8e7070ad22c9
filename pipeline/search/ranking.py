"""What a search ends with: the ranked trials, the winner, its settings as a preset, the front."""

from __future__ import annotations

import csv
import io
import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lasaft.errors import StageError
from lasaft.files import atomic_write_bytes, atomic_write_json
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.config.search import OBJECTIVES
from pipeline.search.candidates import Checker
from pipeline.search.space import SEARCHED, Settings, Space
from pipeline.search.trials import Trial, settings_of, shown

_FIGURES = ("sdr", "val_loss", "parameters", "seconds")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        rank: its place, from 1; None for a trial without a result.
        trial: the trial.
        repeats: the first objective of the same settings with other seeds.
        on_front: whether no other trial is better in one objective and not worse in the others.
    """

    rank: int | None
    trial: Trial
    repeats: tuple[float, ...] = ()
    on_front: bool = False

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
    """The outcome of a search.

    Args:
        folder: where its files are.
        space: what was searched.
        objectives: what it was about, the first one ranks.
        rows: the trials, best first.
        winner: the first of them.
        trials: every trial, with the repeats.
        note: why not all trials have ended, if so.
    """

    folder: Path
    space: Space
    objectives: tuple[str, ...]
    rows: tuple[Row, ...]
    winner: Row
    trials: tuple[Trial, ...]
    note: str

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
    shards = config.data.shards_dir or RunFolder.of(config).shards
    places = {
        "preset": result.preset,
        "shards_dir": shards,
        "output_dir": config.output_dir / "best",
    }
    words = [word for name, place in places.items() for word in (f"--{name}", str(place))]
    return shlex.join(["python", "-m", "jobs.train", *words])


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
    points = []
    for trial in trials:
        figures = [trial.figure(name) for name in objectives]
        if None not in figures:
            signs = [-1.0 if OBJECTIVES[name] else 1.0 for name in objectives]
            point = [s * f for s, f in zip(signs, figures, strict=True) if f is not None]
            points.append((trial, point))
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
    own = [trial for trial in trials if not trial.repeat]
    order = ranked(own, names[0])
    if not order:
        reasons = [f"  trial {one.name}: {one.reason or one.status}" for one in own[:20]]
        raise StageError("\n".join(["search: no trial has a result:", *reasons, note]).rstrip())
    rows = [_row(trial, order, trials, names) for trial in [*order, *_others(own, order)]]
    winner = _winner(rows, names[0])
    rows = [winner, *(row for row in rows if row is not winner)]
    numbered = [
        Row(place if row.rank else None, row.trial, row.repeats, row.on_front)
        for place, row in enumerate(rows, 1)
    ]
    root = RunFolder.of(config).search
    result = SearchResult(root, space, names, tuple(numbered), numbered[0], tuple(trials), note)
    _write(config, result)
    return result


def _row(
    trial: Trial, order: Sequence[Trial], trials: Sequence[Trial], names: Sequence[str]
) -> Row:
    repeats = [
        figure
        for one in trials
        if one.repeat and one.number == trial.number and one.status == "done"
        if (figure := one.figure(names[0])) is not None
    ]
    ends = [one for one in order if one.status == "done"] or order
    on_front = len(names) > 1 and any(one is trial for one in front(ends, names))
    return Row(1 if trial in order else None, trial, tuple(repeats), on_front)


def _others(own: Sequence[Trial], order: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in own if trial not in order]


def _winner(rows: Sequence[Row], objective: str) -> Row:
    """Return the best row: by the mean over seeds where there are repeats."""
    repeated = [row for row in rows if row.repeats]
    if not repeated:
        return rows[0]
    sign = 1.0 if OBJECTIVES[objective] else -1.0
    return max(repeated, key=lambda row: sign * statistics.fmean(row.repeats))


def _write(config: RunConfig, result: SearchResult) -> None:
    root, names = result.folder, result.objectives
    rows = [_as_data(row) for row in result.rows]
    winner = result.winner.trial
    atomic_write_json(
        root / "results.json",
        {
            "space": result.space.name, "objectives": list(names), "winner": winner.name,
            "note": result.note, "trials": rows,
            "repeats": [_as_data(Row(None, one)) for one in result.trials if one.repeat],
        },
    )  # fmt: skip
    atomic_write_bytes(root / "results.csv", csv_text(rows).encode())
    atomic_write_json(root / "winner.json", {"trial": winner.name, "settings": winner.settings})
    atomic_write_bytes(result.preset, preset_text(config, result, winner).encode())
    fronts = root / "front"
    for old in fronts.glob("*.yaml"):
        old.unlink()
    for row in [row for row in result.rows if row.on_front]:
        text = preset_text(config, result, row.trial)
        atomic_write_bytes(fronts / f"{row.trial.name}.yaml", text.encode())


def _as_data(row: Row) -> dict[str, Any]:
    trial = row.trial
    best = trial.best
    return {
        "rank": row.rank, "trial": trial.name, "status": trial.status, "reason": trial.reason,
        "settings": {name: _plain(value) for name, value in trial.settings.items()},
        **{name: trial.figure(name) for name in _FIGURES},
        "sources": best.sources if best else {}, "best_epoch": best.epoch if best else None,
        "epochs": trial.epochs, "training_seconds": trial.seconds, "seed": trial.config.train.seed,
        "repeats": list(row.repeats), "mean": row.mean, "spread": row.spread,
        "on_front": row.on_front,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table as CSV, a column for each option."""
    options = list(dict.fromkeys(name for row in rows for name in row["settings"]))
    flat = ("rank", "trial", "status", *_FIGURES, "best_epoch", "epochs", "mean", "spread")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*flat, *options, "reason"])
    for row in rows:
        settings = [
            shown(row["settings"][name]) if name in row["settings"] else "" for name in options
        ]
        figures = ["" if row[name] is None else row[name] for name in flat]
        writer.writerow([*figures, *settings, row["reason"]])
    return text.getvalue()


def winning_config(config: RunConfig) -> RunConfig:
    """Return ``config`` with the settings of the search that has ended in its folder."""
    from pipeline.search.space_reader import read_space

    assert config.search.space is not None, "a search without a space"
    file = RunFolder.of(config).search / "winner.json"
    settings = settings_of(json.loads(file.read_bytes()))
    return with_settings(config, read_space(config.search.space), settings)


def with_settings(config: RunConfig, space: Space, settings: Settings) -> RunConfig:
    """Return ``config`` with the settings of a trial."""
    found = Checker(config, space).settle(settings, sizes=False).config
    return config.model_copy(
        update={"model": found.model, "train": found.train, "data": found.data}
    )


def preset_text(config: RunConfig, result: SearchResult, trial: Trial) -> str:
    """Return a preset with all settings of a trial's training, with the run's own epochs."""
    whole = with_settings(config, result.space, trial.settings)
    tree: dict[str, dict[str, Any]] = {}
    for group in ("model", "train", "data"):
        section = getattr(whole, group)
        names = SEARCHED["data"] if group == "data" else type(section).model_fields
        tree[group] = {}
        for name in names:
            value, default = getattr(section, name), type(section).model_fields[name].default
            if value is not None or default is not None:
                tree[group][name] = "None" if value is None else _yaml(value)
    figures = ", ".join(
        f"{name} {shown(figure)}"
        for name in result.objectives
        if (figure := trial.figure(name)) is not None
    )
    settings = " ".join(f"{name}={shown(value)}" for name, value in trial.settings.items())
    head = (
        f"# Trial {trial.name} of a search over {result.space.name}: {figures} in validation.\n"
        f"# {settings}\n"
    )
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _yaml(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
