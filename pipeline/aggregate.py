"""From the frames of many tracks to the figures of a leaderboard: medians, means, the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lasaft.errors import DataError
from pipeline.score_files import METRICS, FrameScores
from pipeline.summary import (
    AGGREGATION,
    LARGEST_DB,
    METRIC,
    DataIdentity,
    Figure,
    Summary,
    System,
    TrackSummary,
)


def summarise_track(name: str, file: str, sha256: str, scores: FrameScores) -> TrackSummary:
    """Return the medians over frames of one track, and how many frames are NaN."""
    first = next(iter(scores.values.values()))
    return TrackSummary(
        name=name,
        file=file,
        sha256=sha256,
        frames=len(first["SDR"]),
        nan_frames={s: int(np.isnan(m["SDR"]).sum()) for s, m in scores.values.items()},
        medians={
            source: {metric: reduce(metrics[metric], np.median) for metric in METRICS}
            for source, metrics in scores.values.items()
        },
    )


def reduce(
    values: np.ndarray | Sequence[float | None], function: Callable[[np.ndarray], Any]
) -> float | None:
    """Apply ``function`` to the values that are numbers; None if there is none."""
    array = np.array([np.nan if value is None else value for value in values], np.float64)
    numbers = array[np.isfinite(array)]
    return float(function(numbers)) if numbers.size else None


def aggregate(
    tracks: Sequence[TrackSummary], sources: Sequence[str]
) -> dict[str, dict[str, Figure]]:
    """Return the figure of every source and metric over ``tracks``.

    Source: museval 0.4.1, ``EvalStore.agg_frames_tracks_scores`` (median of medians, NaN skipped).
    """
    return {
        source: {
            metric: Figure(
                median=reduce([t.medians[source][metric] for t in tracks], np.median),
                mean=reduce([t.medians[source][metric] for t in tracks], np.mean),
            )
            for metric in METRICS
        }
        for source in sources
    }


def summarise(
    name: str,
    system: System,
    data: DataIdentity,
    tracks: Sequence[TrackSummary],
    *,
    verified: Sequence[Mapping[str, Any]] = (),
) -> Summary:
    """Return the summary of a system over all its tracks.

    Raises:
        DataError: no track, or tracks that were scored on different sources.
    """
    if not tracks:
        raise DataError(f"{name}: no scored track to summarise")
    sources = list(tracks[0].medians)
    for track in tracks:
        if list(track.medians) != sources:
            raise DataError(
                f"{name}: track {track.name!r} is scored on {', '.join(track.medians)}, but "
                f"{tracks[0].name!r} on {', '.join(sources)}; score them on the same sources"
            )
    scores = aggregate(tracks, sources)
    return Summary(
        name=name,
        system=system,
        data=data,
        sources=sources,
        scores=scores,
        average={metric: _average(scores, metric) for metric in METRICS},
        frames=sum(track.frames for track in tracks),
        nan_frames={s: sum(track.nan_frames[s] for track in tracks) for s in sources},
        verified=[dict(record) for record in verified],
        tracks=list(tracks),
    )


def _average(scores: Mapping[str, Mapping[str, Figure]], metric: str) -> Figure:
    medians = [figures[metric].median for figures in scores.values()]
    means = [figures[metric].mean for figures in scores.values()]
    whole = None not in medians
    return Figure(
        median=reduce(medians, np.mean) if whole else None,
        mean=reduce(means, np.mean) if whole else None,
    )


def score_table(summary: Summary, baseline: Summary | None = None) -> str:
    """Return the plain-text table of a terminal: sources x SDR ISR SIR SAR, beside a baseline.

    Args:
        summary: of the system of interest.
        baseline: of another system on the same tracks (the mixture), shown with the difference.
    """
    blocks = [(summary.name, lambda s, m: _median(summary, s, m))]
    if baseline is not None:
        blocks.append((baseline.name, lambda s, m: _median(baseline, s, m)))
        blocks.append(("difference", lambda s, m: _difference(summary, baseline, s, m)))
    rows = [*summary.sources, "average"]
    label = max(len(row) for row in rows) + 1
    width = 7 * len(METRICS)
    data = summary.data
    lines = [
        f"{data.name}, {data.split}, {len(summary.tracks)} tracks: {METRIC} in dB, {AGGREGATION}",
        " " * label + "  ".join(f" {_cut(name, width - 1):^{width - 1}}" for name, _ in blocks),
        " " * label + "  ".join("".join(f"{m:>7}" for m in METRICS) for _ in blocks),
    ]
    for row in rows:
        cells = ("".join(_cell(value(row, metric)) for metric in METRICS) for _, value in blocks)
        lines.append(f"{row:<{label}}" + "  ".join(cells))
    if any(summary.nan_frames.values()):
        lines.append(f"frames without a number (silent): {_nan_text(summary)}")
    return "\n".join(lines)


def _nan_text(summary: Summary) -> str:
    counts = [f"{source} {count}" for source, count in summary.nan_frames.items()]
    return f"{', '.join(counts)} of {summary.frames}"


def _median(summary: Summary, source: str, metric: str) -> float | None:
    figures = summary.average if source == "average" else summary.scores.get(source, {})
    return figures[metric].median if metric in figures else None


def _difference(one: Summary, other: Summary, source: str, metric: str) -> float | None:
    return difference(_median(one, source, metric), _median(other, source, metric))


def difference(a: float | None, b: float | None) -> float | None:
    """Return ``a - b`` in dB, or None where one is no number or beyond ``LARGEST_DB``."""
    return None if a is None or b is None or max(a, b) > LARGEST_DB else a - b


def _cell(value: float | None) -> str:
    text = "-" if value is None else f"{value:.2f}"
    return f"{f'>{LARGEST_DB:.0f}' if value is not None and value > LARGEST_DB else text:>7}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
