"""Systems side by side, frame by frame: tests on common frames, places, and what silence gains."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from pipeline.evaluation.scenarios import single_sources
from pipeline.evaluation.score_files import read_scores
from pipeline.evaluation.summary import Summary
from pipeline.report.statistics import (
    CONFIDENCE,
    FEWEST_TRACKS,
    Difference,
    Interval,
    holm,
    signed_rank,
)

AVERAGE = "average"
MARKED_DB = 0.1  # a system that gains more by its silences is marked


@dataclass(frozen=True)
class Column:
    """A source of a song: the SDR of each frame in dB, which of them are numbers, their median."""

    sdr: np.ndarray
    there: np.ndarray
    median: float | None

    @classmethod
    def of(cls, sdr: np.ndarray) -> Column:
        """Return the column of these frames, NaN without a number."""
        there = np.isfinite(sdr)
        return cls(sdr, there, float(np.median(sdr[there])) if there.any() else None)

    def over(self, frames: np.ndarray) -> float | None:
        """Return the median over some of the first frames; those without a number are left out."""
        kept = self.there[: len(frames)] & frames
        if kept.sum() == self.there.sum():
            return self.median
        return float(np.median(self.sdr[: len(frames)][kept])) if kept.any() else None


@dataclass(frozen=True)
class Entry:
    """A system with the frames of its scores: ``songs[source][track]``."""

    summary: Summary
    songs: Mapping[str, Mapping[str, Column]]

    @property
    def name(self) -> str:
        """The system's name on the board."""
        return self.summary.name

    @property
    def averaged(self) -> list[str]:
        """The sources that count in the average."""
        return single_sources(self.summary.sources)

    def beside(self, other: Entry, source: str) -> Iterator[tuple[str, Column, Column]]:
        """Yield the songs of a source that both have."""
        theirs = other.songs.get(source, {})
        for track, column in self.songs[source].items():
            if track in theirs:
                yield track, column, theirs[track]


def read_entry(folder: Path, summary: Summary) -> Entry:
    """Read the frames of a system from the score files in ``folder`` that its summary names."""
    scores = {track.name: read_scores(folder / track.file).values for track in summary.tracks}
    return Entry(
        summary,
        {s: {t: Column.of(v[s]["SDR"]) for t, v in scores.items()} for s in summary.sources},
    )


def _both(one: Column, other: Column) -> np.ndarray:
    """Return where both have a number; scores of others may lack the last frame."""
    count = min(len(one.there), len(other.there))
    return one.there[:count] & other.there[:count]


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same frames: ``difference`` = first - second, typical of a song, dB."""

    first: str
    second: str
    source: str
    tracks: int
    frames: int
    difference: float
    interval: Interval
    p: float
    p_holm: float

    @property
    def better(self) -> str | None:
        """The system that is better with confidence, if one is."""
        if self.p_holm >= 1 - CONFIDENCE:
            return None
        return self.first if self.difference > 0 else self.second


def compare(entries: Sequence[Entry]) -> list[Comparison]:
    """Return the test of every two systems on every source that both have, and on the average.

    A song counts with the median of each system over the frames in which both have a number. A
    pair with fewer than ``FEWEST_TRACKS`` such songs, or without any difference, is left out.
    """
    found: list[tuple[tuple[str, str, str, int, int], Difference]] = []
    for one, other in combinations(entries, 2):
        for source, songs, frames in _differences(one, other):
            if len(songs) >= FEWEST_TRACKS and np.any(songs):
                facts = one.name, other.name, source, len(songs), frames
                found.append((facts, signed_rank(songs)))
    corrected = holm([test.p for _, test in found])
    return [
        Comparison(*facts, test.value, test.interval, test.p, p_holm)
        for (facts, test), p_holm in zip(found, corrected, strict=True)
    ]


def _differences(one: Entry, other: Entry) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yield each column, the difference of each song that both have, and the frames behind it."""
    found: dict[str, dict[str, float]] = {}
    frames: dict[str, int] = {}
    for source in (s for s in one.summary.sources if s in other.summary.sources):
        found[source], frames[source] = {}, 0
        for track, a, b in one.beside(other, source):
            both = _both(a, b)
            mine, theirs = a.over(both), b.over(both)
            if mine is not None and theirs is not None:
                found[source][track] = mine - theirs
                frames[source] += int(both.sum())
        yield source, np.array(list(found[source].values())), frames[source]
    counted = one.averaged
    if set(counted) == set(other.averaged):
        whole = [t for t in found[counted[0]] if all(t in found[source] for source in counted)]
        songs = np.array([np.mean([found[s][t] for s in counted]) for t in whole])
        yield AVERAGE, songs, sum(frames[source] for source in counted)


def places(
    names: Collection[str], tests: Sequence[Comparison], column: str
) -> dict[str, tuple[int, int]]:
    """Return the best and the worst place in a column that the tests leave open to each system.

    All of them hold together with the tests' confidence.

    Source: Mogstad, Romano, Shaikh and Wilhelm, Inference for ranks, 2024.
    """
    found = {name: (1, len(names)) for name in names}
    for test in tests:
        pair = {test.first, test.second}
        if test.source == column and test.better is not None and pair <= found.keys():
            (worse,) = pair - {test.better}
            best, last = found[test.better]
            found[test.better] = best, last - 1
            best, last = found[worse]
            found[worse] = best + 1, last
    return found


@dataclass(frozen=True)
class Silence:
    """Frames without a number of a system where others have one, and what that gains it in dB."""

    frames: int
    gain: float

    @property
    def marked(self) -> bool:
        """Whether it gains more than may be overlooked."""
        return self.gain > MARKED_DB


def silences(entry: Entry, others: Sequence[Entry]) -> dict[str, Silence]:
    """Return what a system leaves out of each source, and of the average.

    The gain is what the others' figures (median of frames, median of songs) would rise by, had
    they left out the same frames: the median over the others.
    """
    found: dict[str, Silence] = {}
    for source in entry.summary.sources:
        frames = _left_out(entry, others, source)
        rises = [_rise(entry, other, source) for other in others] if frames else []
        known = [rise for rise in rises if rise is not None]
        found[source] = Silence(frames, float(np.median(known)) if known else 0.0)
    counted = [found[source] for source in entry.averaged]
    gain = float(np.mean([one.gain for one in counted]))
    return {**found, AVERAGE: Silence(sum(one.frames for one in counted), gain)}


def _left_out(entry: Entry, others: Sequence[Entry], source: str) -> int:
    seen = {track: np.zeros_like(own.there) for track, own in entry.songs[source].items()}
    for other in others:
        for track, own, theirs in entry.beside(other, source):
            count = min(len(own.there), len(theirs.there))
            seen[track][:count] |= theirs.there[:count] & ~own.there[:count]
    return int(sum(frames.sum() for frames in seen.values()))


def _rise(entry: Entry, other: Entry, source: str) -> float | None:
    """Return how much a figure of ``other`` rises without the frames that ``entry`` leaves out."""
    pairs = [(b.median, b.over(_both(a, b))) for _, a, b in entry.beside(other, source)]
    before = [median for median, _ in pairs if median is not None]
    after = [median for _, median in pairs if median is not None]
    return float(np.median(after) - np.median(before)) if after else None
