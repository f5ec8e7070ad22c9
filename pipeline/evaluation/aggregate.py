"""From the frames of many tracks to the figures of a leaderboard: medians and means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lasaft.errors import DataError
from pipeline.evaluation.scenarios import scored_names, single_sources
from pipeline.evaluation.score_files import (
    ALL_METRICS,
    LEAK,
    METRICS,
    WHOLE_METRICS,
    FrameScores,
)
from pipeline.evaluation.summary import (
    LARGEST_DB,
    DataIdentity,
    Figure,
    Scenario,
    Summary,
    System,
    TrackSummary,
    definitions,
)


def summarise_track(name: str, file: str, sha256: str, scores: FrameScores) -> TrackSummary:
    """Return one figure for each source and metric of a track, and how many frames are NaN."""
    return TrackSummary(
        name=name,
        file=file,
        sha256=sha256,
        frames=scores.frames,
        nan_frames={s: int(np.isnan(m["SDR"]).sum()) for s, m in scores.values.items()},
        scores={
            source: {metric: reduce(metrics[metric], np.median) for metric in METRICS}
            | {m: scores.whole.get(source, {}).get(m) for m in ALL_METRICS if m not in METRICS}
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
                median=reduce([t.scores[source][metric] for t in tracks], np.median),
                mean=reduce([t.scores[source][metric] for t in tracks], np.mean),
            )
            for metric in ALL_METRICS
        }
        for source in sources
    }


def summarise(
    name: str,
    system: System,
    data: DataIdentity,
    tracks: Sequence[TrackSummary],
    *,
    scenario: Scenario = "sources",
    verified: Sequence[Mapping[str, Any]] = (),
    command: str = "",
) -> Summary:
    """Return the summary of a system over all its tracks.

    Raises:
        DataError: no track, or tracks that were scored on different sources.
    """
    if not tracks:
        raise DataError(f"{name}: no scored track to summarise")
    sources = list(tracks[0].scores)
    for track in tracks:
        if list(track.scores) != sources:
            raise DataError(
                f"{name}: track {track.name!r} is scored on {', '.join(track.scores)}, but "
                f"{tracks[0].name!r} on {', '.join(sources)}; score them on the same sources"
            )
    scores = aggregate(tracks, sources)
    single = single_sources(sources)
    meaning = definitions(scenario, sets=len(scored_names(scenario, single)) < len(sources))
    if never := ", ".join(name for name in single if name not in averaged(scores)):
        meaning["average"] += f" Left out, because silent in every song: {never}."
    return Summary(
        name=name,
        system=system,
        data=data,
        scenario=scenario,
        definitions=meaning,
        sources=sources,
        scores=scores,
        average={metric: _average(scores, metric) for metric in ALL_METRICS},
        frames=sum(track.frames for track in tracks),
        nan_frames={s: sum(track.nan_frames[s] for track in tracks) for s in sources},
        verified=[dict(record) for record in verified],
        command=command,
        tracks=list(tracks),
    )


def averaged(scores: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    """Return the sources that the average is of: no sums of others, none that no song has."""

    def sounds(source: str) -> bool:
        leak, whole = (scores[source][metric].median for metric in (LEAK, WHOLE_METRICS[0]))
        return leak is None or whole is not None

    return [source for source in single_sources(list(scores)) if sounds(source)]


def _average(scores: Mapping[str, Mapping[str, Figure]], metric: str) -> Figure:
    own = [scores[source][metric] for source in averaged(scores)]
    medians, means = [figure.median for figure in own], [figure.mean for figure in own]
    whole = None not in medians
    return Figure(
        median=reduce(medians, np.mean) if whole else None,
        mean=reduce(means, np.mean) if whole else None,
    )


def difference(a: float | None, b: float | None) -> float | None:
    """Return ``a - b`` in dB, or None where one is no number or beyond ``LARGEST_DB``."""
    return None if a is None or b is None or max(a, b) > LARGEST_DB else a - b
