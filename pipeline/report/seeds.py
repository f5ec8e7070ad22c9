"""Runs that differ in their seed only: the mean of their figures, and how far they spread."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.score_files import ALL_METRICS
from pipeline.evaluation.summary import Summary


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over seeds, dB."""

    mean: float
    sd: float


@dataclass(frozen=True)
class SeedGroup:
    """Runs with one recipe: ``cells[source, metric, aggregation]``, of figures that all have."""

    name: str  # of the network
    recipe: str  # what the runs share
    runs: dict[int, str]  # name of each run by its seed
    cells: dict[tuple[str, str, str], Spread]

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        figures = [
            {"source": s, "metric": m, "aggregation": a, **asdict(spread)}
            for (s, m, a), spread in self.cells.items()
        ]
        return {"name": self.name, "recipe": self.recipe, "runs": self.runs, "figures": figures}


def seed_groups(summaries: Sequence[Summary]) -> list[SeedGroup]:
    """Return a group for each recipe that was trained with two seeds or more.

    The networks must also have been evaluated alike. A seed that comes twice counts once.
    """
    found: dict[str, dict[int, Summary]] = defaultdict(dict)
    for summary in summaries:
        system = summary.system
        if system.recipe is None or system.seed is None:
            continue
        alike = [system.recipe, system.settings, summary.sources, summary.scenario]
        found[json.dumps(alike, sort_keys=True)].setdefault(system.seed, summary)
    return [_group(dict(sorted(runs.items()))) for runs in found.values() if len(runs) > 1]


def _group(runs: dict[int, Summary]) -> SeedGroup:
    first = next(iter(runs.values()))
    assert first.system.recipe is not None
    cells: dict[tuple[str, str, str], Spread] = {}
    for metric in ALL_METRICS:
        rows = [{**run.scores, "average": run.average} for run in runs.values()]
        for source in (*first.sources, "average"):
            for how in ("median", "mean"):
                values = [getattr(row[source][metric], how) for row in rows]
                if None not in values:
                    sd = float(np.std(values, ddof=1))
                    cells[source, metric, how] = Spread(float(np.mean(values)), sd)
    name = first.system.variant or first.name
    return SeedGroup(name, first.system.recipe, {s: run.name for s, run in runs.items()}, cells)
