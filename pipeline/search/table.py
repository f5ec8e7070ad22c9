"""The table of a search as people read it on a terminal."""

from __future__ import annotations

from pipeline.search.ranking import Row, SearchResult
from pipeline.search.trials import shown

_LONGEST_REASON = 60


def table_text(result: SearchResult) -> str:
    """Return the trials, best first: a line each, with the figures and the settings."""
    options = list(dict.fromkeys(name for row in result.rows for name in row.trial.settings))
    repeated = any(row.repeats for row in result.rows)
    heads = ["rank", "trial", "SDR dB", "val_loss", "parameters", "epochs"]
    if "seconds" in result.objectives:
        heads.insert(5, "s/song")
    heads += ["seeds"] if repeated else []
    lines = [[*heads, *options, "ended"], *(_cells(row, heads, options) for row in result.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    left = {1, *range(len(heads), len(lines[0]))}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Row, heads: list[str], options: list[str]) -> list[str]:
    trial = row.trial
    figures = {
        "rank": "-" if row.rank is None else str(row.rank),
        "trial": trial.name,
        "SDR dB": _number(trial.figure("sdr"), ".2f"),
        "val_loss": _number(trial.figure("val_loss"), ".4g"),
        "parameters": f"{trial.parameters:,}",
        "s/song": _number(trial.figure("seconds"), ".1f"),
        "epochs": str(trial.epochs),
        "seeds": "" if row.mean is None else f"{row.mean:.3g} ± {_number(row.spread, '.2g')}",
    }
    settings = [shown(trial.settings[name]) if name in trial.settings else "" for name in options]
    ended = trial.status if trial.status == "done" else f"{trial.status}: {trial.reason}"
    if len(ended) > _LONGEST_REASON:
        ended = ended[: _LONGEST_REASON - 3] + "..."
    return [*(figures[head] for head in heads), *settings, ended.rstrip(": ")]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
