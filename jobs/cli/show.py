"""Results as people read them: what was made, where it is, what comes next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.cli.run import EXIT_FAILED, Result
from lasaft import output
from lasaft.files import read_steadily
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.search.ranking import Row, SearchResult, training_command
from pipeline.search.trials import shown
from pipeline.tracking import ui_command

if TYPE_CHECKING:
    from pipeline.data.shards.inspect import Inspection
    from pipeline.data.shards.manifest import Manifest
    from pipeline.evaluation.summary import Summary
    from pipeline.report.build import ReportResult
    from pipeline.training.loop.records import TrainResult
    from pipeline.workflow.steps import StepResult


_TABLES = 4  # the most that people read in a terminal
_OF_INTEREST = ("model", "estimates", "scores")  # the bounds come after them


def shards_result(config: RunConfig, manifest: Manifest) -> Result:
    """Return what preprocessing made."""
    folder = RunFolder.of(config).shards_address or RunFolder.of(config).shards
    frames = sum(track.frames for track in manifest.tracks)
    seconds = frames * manifest.settings.hop_length / manifest.settings.sample_rate
    splits = [track.split for track in manifest.tracks]
    counts = {split: splits.count(split) for split in ("train", "valid", "test")}
    text = (
        f"shards    {folder}\n"
        f"tracks    {', '.join(f'{count} {split}' for split, count in counts.items())}\n"
        f"length    {seconds / 60:.1f} minutes in {frames} frames\n"
        f"hash      {manifest.hash}"
    )
    data = {"shards_dir": str(folder), "tracks": counts, "frames": frames, "hash": manifest.hash}
    return Result(text, data)


def inspection_result(config: RunConfig, found: Inspection) -> Result:
    """Return what reading all shards again found: exit code 1 if one is damaged."""
    folder = RunFolder.of(config).shards_address or RunFolder.of(config).shards
    count = f"{found.shards} shards, {found.size_bytes / 1e9:.2f} GB"
    data = {
        "shards_dir": str(folder),
        "shards": found.shards,
        "size_bytes": found.size_bytes,
        "damaged": [{"path": fault.path, "what": fault.what} for fault in found.faults],
    }
    if not found.faults:
        assert found.manifest is not None
        text = f"{count} in {folder}: every byte is right\nhash  {found.manifest.hash}"
        return Result(text, data)
    root = config.data.musdb_root or "<songs>"
    lines = [f"{len(found.faults)} damaged files ({count} in {folder})"]
    lines += [f"  {fault}" for fault in found.faults]
    place = shlex.quote(str(folder))
    lines += [f"run: python -m jobs.preprocess --repair --shards_dir {place} --musdb_root {root}"]
    return Result("\n".join(lines), data, EXIT_FAILED)


def repair_result(config: RunConfig, before: Inspection, after: Inspection) -> Result:
    """Return what was damaged, and that it is right now."""
    now = inspection_result(config, after)
    lines = [f"repaired  {fault}" for fault in before.faults]
    repaired = [fault.path for fault in before.faults]
    return Result("\n".join([*lines, now.text]), {**now.data, "repaired": repaired})


def training_result(result: TrainResult) -> Result:
    """Return what training ended with."""
    sdr = "  ".join(f"{name} {_number(value, '.2f')}" for name, value in result.val_sdr.items())
    # People count from 1, as the progress line does; an epoch that was cut short counts too.
    epochs = max(result.epochs, result.best_epoch + 1)
    lines = [
        f"checkpoint  {result.checkpoint}",
        f"best epoch  {result.best_epoch + 1} of {epochs} ({result.reason})",
        f"val_loss    {'none' if result.best_val_loss is None else f'{result.best_val_loss:.6g}'}",
        f"val SDR     {sdr} dB",
        f"steps       {result.steps} in {result.seconds:.0f} s, "
        f"{100 * result.data_wait_share:.1f}% of it waiting for data",
        *(f"note        {note}" for note in result.notes),
    ]
    return Result("\n".join(lines), result.to_json())


def search_result(config: RunConfig, result: SearchResult) -> Result:
    """Return the table of a search, its winner, and what trains it."""

    winner = result.winner.trial
    places = {"winner": winner.title, "settings": str(result.preset), "report": str(result.page)}
    if config.tracking.log:
        places["mlflow"] = ui_command(config)
    lines = [table_text(result), "", *(f"{name:<10}{place}" for name, place in places.items())]
    lines.append(f"{'train it':<10}{training_command(config, result)}")
    if result.note:
        lines.append(f"{'note':<10}{result.note}: with more of it the same command goes on")
    data = json.loads(read_steadily(result.folder / "results.json"))
    return Result("\n".join(lines), {**data, **places})


def read_summaries(config: RunConfig) -> list[Summary]:
    """Return the summaries of a run's scores."""
    from pipeline.evaluation.summary import read_summary

    return [read_summary(p) for p in sorted(RunFolder.of(config).scores.glob("*/summary.json"))]


def scores_result(config: RunConfig, report: ReportResult | None = None) -> Result:
    """Return the scores of a run, a table a system beside the mixture's; 1 where songs failed.

    Of a report the systems are ranked first; of many systems there is nothing else.
    """
    from pipeline.evaluation.score_table import score_table
    from pipeline.report.tables import ranking_text

    summaries = read_summaries(config) if report is None else report.summaries
    summaries = sorted(summaries, key=lambda one: one.system.kind not in _OF_INTEREST)
    mixtures = [one for one in summaries if one.system.kind == "mixture"]
    others = [one for one in summaries if one not in mixtures]
    tables = [score_table(one, next(filter(one.is_beside, mixtures), None)) for one in others]
    tables = tables or [score_table(one) for one in mixtures]
    failed = {name: reason for one in summaries for name, reason in one.failed.items()}
    data: dict[str, Any] = {
        "scores": {one.name: _medians(one) for one in summaries},
        "failed": failed,
        "output_dir": RunFolder.of(config).shown,
    }
    if report is not None and len(tables) > 1:
        tables = [ranking_text(report.board), *(tables if len(tables) <= _TABLES else [])]
    lines = ["\n\n".join(table.rstrip() for table in tables)]
    if failed:
        lines.append(f"\n{len(failed)} failed, and the figures are about the others:")
        lines += [f"  {name}: {reason}" for name, reason in failed.items()]
    if report is not None:
        data["report"] = str(report.page)
        lines += [f"\nreport: {report.page}", *_kept(config)]
    return Result("\n".join(lines), data, EXIT_FAILED if failed else 0)


def run_result(config: RunConfig, steps: Sequence[StepResult]) -> Result:
    """Return the result of a whole run: its scores, where everything is, what to look at next."""
    from pipeline.evaluation.excerpts import EXCERPTS

    folder = RunFolder.of(config)
    page = folder.report / "index.html"
    scores = scores_result(config)
    places = {"report": str(page), "audio": str(folder.estimates), "model": str(folder.checkpoint)}
    if config.evaluate.save_estimates == "none":
        places["audio"] = str(folder.estimates / EXCERPTS)
    if config.tracking.log:
        places["mlflow"] = ui_command(config)
    lines = [scores.text, "", *(f"{name:<8}{place}" for name, place in places.items())]
    lines += _kept(config)
    if all(step.skipped for step in steps):
        lines.append("\nnothing has changed since the last run: every step was skipped")
    done = {step.name: "skipped" if step.skipped else round(step.seconds, 1) for step in steps}
    return Result("\n".join(lines), {**scores.data, **places, "steps": done}, scores.exit_code)


def _kept(config: RunConfig) -> list[str]:
    """Return the line that says where a run is kept, if that is an object store."""
    folder = RunFolder.of(config)
    said = f"kept    {folder.shown}: the paths above are this machine's copies"
    return [] if folder.address is None else [said]


def _medians(summary: Summary) -> dict[str, dict[str, float | None]]:
    return {
        source: {metric: figure.median for metric, figure in scores.items()}
        for source, scores in {**summary.scores, "average": summary.average}.items()
    }


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
    cells = [*(figures[head] for head in heads), *settings, ended.rstrip(": ")]
    return [*map(output.shown, cells)]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
