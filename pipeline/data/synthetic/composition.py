"""Writes the score of a song: tempo, key, form, chords, and which parts play on which beat."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lasaft.config import MUSDB18_SOURCES
from pipeline.data.synthetic.tones import control

Kind = Literal["intro", "verse", "chorus", "break", "outro"]
BEATS_A_BAR = 4

_MAJOR = (0, 2, 4, 5, 7, 9, 11)
_MINOR = (0, 2, 3, 5, 7, 8, 10)
# Scale degrees of the chords, a bar each, four bars and round again.
_MAJOR_CHORDS = ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 5, 4), (5, 3, 0, 4), (0, 2, 3, 4), (1, 4, 0, 5))
_MINOR_CHORDS = ((0, 5, 2, 6), (0, 3, 6, 2), (0, 6, 5, 6), (0, 5, 3, 4), (5, 6, 0, 0), (0, 2, 6, 3))
_FORM: tuple[Kind, ...] = ("verse", "chorus", "break", "verse", "chorus", "break")
_BREAKS = (
    {"vocals", "other"}, {"drums", "bass"}, {"vocals", "drums"}, {"bass", "other"}, {"other"},
    {"vocals", "bass"}, {"drums", "other"},
)  # fmt: skip
_SHORTEST_REST_SECONDS = 0.6  # longer than the release and most of the reverb of any part
_LONGEST_REST_SECONDS = 3.0


@dataclass(frozen=True)
class Section:
    """A run of bars with one character."""

    kind: Kind
    first_bar: int
    bars: int


SectionBar = tuple[Section, int, int]


@dataclass(frozen=True)
class Note:
    """One note: onset and length in beats, MIDI pitch, velocity 0 to 1."""

    beat: float
    beats: float
    pitch: int
    velocity: float


@dataclass(frozen=True)
class Score:
    """What all parts of a song agree on.

    Args:
        samples: length of the song.
        sample_rate: Hz.
        tempo_bpm: beats a minute.
        swing: delay of every second eighth, in beats.
        tonic: pitch class of the key, 0 is C.
        scale: semitones of the seven degrees.
        sections: the form, in order, without gaps.
        degrees: scale degree of the chord of each bar.
        sevenths: whether chords have a seventh.
        active: for each source, whether it plays, [beat].
    """

    samples: int
    sample_rate: int
    tempo_bpm: float
    swing: float
    tonic: int
    scale: tuple[int, ...]
    sections: tuple[Section, ...]
    degrees: tuple[int, ...]
    sevenths: bool
    active: dict[str, NDArray[np.bool_]]

    @property
    def bars(self) -> int:
        """Number of bars, the last one perhaps cut off."""
        return len(self.degrees)

    @property
    def beat_seconds(self) -> float:
        """Length of a beat in seconds."""
        return 60.0 / self.tempo_bpm

    def section_bars(self, sections: Iterable[Section] | None = None) -> Iterator[SectionBar]:
        """Yield (section, bar within it, its first beat) of every bar, or of some sections."""
        for section in self.sections if sections is None else sections:
            for bar in range(section.bars):
                yield section, bar, (section.first_bar + bar) * BEATS_A_BAR

    def seconds_at(self, beat: float) -> float:
        """Return the time of ``beat`` in seconds, with swing on the off-beats."""
        late = self.swing if beat % 1 == 0.5 else 0.0
        return (beat + late) * self.beat_seconds

    def plays(self, source: str, beat: float) -> bool:
        """Say whether ``source`` plays on ``beat``."""
        return 0 <= beat < self.active[source].size and bool(self.active[source][int(beat)])

    def entry(self, source: str, beat: float, beats: float) -> tuple[float, float] | None:
        """Return (beat, beats) of a note from where its source plays, None if it never does."""
        start = beat
        while start < beat + beats:
            if self.plays(source, start):
                return start, beat + beats - start
            start = float(math.floor(start) + 1)
        return None

    def pitch_of(self, degree: int) -> int:
        """Return semitones above C of a scale degree; degrees past 6 are an octave up."""
        octave, step = divmod(degree, len(self.scale))
        return self.tonic + self.scale[step] + 12 * octave

    def chord_at(self, beat: float) -> tuple[int, ...]:
        """Return the pitch classes of the chord under ``beat``, the root first."""
        root = self.degrees[min(int(beat) // BEATS_A_BAR, self.bars - 1)]
        steps = (0, 2, 4, 6) if self.sevenths else (0, 2, 4)
        return tuple(self.pitch_of(root + step) % 12 for step in steps)

    def gate(self, source: str, attack: float = 0.005, release: float = 0.06) -> NDArray:
        """Return 1 where ``source`` plays and 0 where it rests, [sample], with edges in seconds.

        The part that opens before a beat is what a player does: breath, pick, stick.
        """
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self.active[source], [0]])))
        times, values = [0.0], [0.0]
        for start, end in (edges.reshape(-1, 2) * self.beat_seconds).tolist():
            times += [start - attack, start, end, end + release]
            values += [0.0, 1.0, 1.0, 0.0]
        return control(times, values, self.samples, self.sample_rate)


def write_score(rng: np.random.Generator, samples: int, sample_rate: int) -> Score:
    """Compose the frame of a song of ``samples`` at ``sample_rate`` Hz."""
    tempo = float(rng.integers(78, 146))
    beats = max(1, math.ceil(samples / sample_rate * tempo / 60))
    bars = math.ceil(beats / BEATS_A_BAR)
    sections = _form(rng, bars)
    minor = rng.random() < 0.5
    progressions = _MINOR_CHORDS if minor else _MAJOR_CHORDS
    chosen = {kind: progressions[rng.integers(len(progressions))] for kind in _FORM}
    degrees = [
        chosen.get(section.kind, chosen["chorus"])[bar % 4]
        for section in sections
        for bar in range(section.bars)
    ]
    return Score(
        samples=samples,
        sample_rate=sample_rate,
        tempo_bpm=tempo,
        swing=float(rng.choice([0.0, 0.0, 0.06, 0.12])),
        tonic=int(rng.integers(12)),
        scale=_MINOR if minor else _MAJOR,
        sections=tuple(sections),
        degrees=tuple(degrees),
        sevenths=bool(rng.random() < 0.4),
        active=_activity(rng, sections, beats, 60 / tempo),
    )


def _form(rng: np.random.Generator, bars: int) -> list[Section]:
    long = 4 if bars >= 10 else 2 if bars >= 5 else 1
    plan: list[tuple[Kind, int]] = [("intro", max(1, long // 2))] if bars >= 5 else []
    used, turn = sum(count for _, count in plan), int(rng.integers(2))
    while used < bars:
        kind = _FORM[turn % len(_FORM)]
        count = min(bars - used, max(1, long // 2) if kind == "break" else long)
        plan.append((kind, count))
        used, turn = used + count, turn + 1
    if len(plan) > 3 and plan[-1][1] <= long // 2:
        plan[-1] = ("outro", plan[-1][1])
    first = np.cumsum([0] + [count for _, count in plan])
    return [Section(kind, int(at), count) for (kind, count), at in zip(plan, first, strict=False)]


def _activity(
    rng: np.random.Generator, sections: list[Section], beats: int, beat_seconds: float
) -> dict[str, NDArray[np.bool_]]:
    active = {source: np.zeros(beats, bool) for source in MUSDB18_SOURCES}
    for section in sections:
        first = section.first_bar * BEATS_A_BAR
        span = slice(first, first + section.bars * BEATS_A_BAR)
        for source in _players(rng, section.kind):
            active[source][span] = True
    # Every source rests once on its own, each in another quarter of the song.
    seconds = min(max(_SHORTEST_REST_SECONDS, 0.09 * beats * beat_seconds), _LONGEST_REST_SECONDS)
    rest = math.ceil(seconds / beat_seconds)
    for quarter, source in enumerate(rng.permutation(MUSDB18_SOURCES)):
        room = beats / 4
        start = round(quarter * room + rng.random() * max(0.0, room - rest))
        kept = active[source].copy()
        kept[start : start + rest] = False
        active[source] = kept if kept.any() else np.arange(beats) < max(1, beats // 2)
    return active


def _players(rng: np.random.Generator, kind: Kind) -> set[str]:
    if kind == "intro":
        return set(rng.choice(["drums", "bass", "other"], 2, replace=False).tolist())
    if kind == "break":
        return _BREAKS[rng.integers(len(_BREAKS))]
    if kind == "outro":
        return {str(rng.choice(["vocals", "drums"])), "bass", "other"}
    if kind == "verse" and rng.random() < 0.2:
        return {"vocals", "drums", "bass"}
    return set(MUSDB18_SOURCES)
