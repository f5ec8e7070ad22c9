"""A drum kit that is built anew for every song, and the patterns that it plays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.data.synthetic.composition import Score, Section
from pipeline.data.synthetic.space import add_room, pan, room_response
from pipeline.data.synthetic.tones import Array, add_at, band

# Velocity of each sixteenth: '.' is silence, 1 soft, 2 normal, 3 accent.
_KICKS = (
    "3.....2.3.......", "3...3...3...3...", "3..2..3.....2...", "3.......3.2.....",
    "3.....3...2.....", "3..3....2.3.....",
)  # fmt: skip
_SNARES = ("....3.......3...", "....3..1....3..1", "....3....1..3...", "........3.......")
_HATS = (
    "2.1.2.1.2.1.2.1.", "2121212121212121", "..2...2...2...2.", "2.112.112.112.11",
    "2...2...2...2...",
)  # fmt: skip
_FILLS = ("....2.2.3.3.2323", "........2.2.3333", "............3.33")
_VARIANTS = 3  # takes of each drum, so that no two hits in a row are the same samples


class Kit:
    """The drums of one song; each is struck when it is first wanted."""

    def __init__(self, rng: np.random.Generator, sample_rate: int) -> None:
        self.rng, self.rate = rng, sample_rate
        clap = rng.random() < 0.4
        kick_hz, kick_decay = rng.uniform(42, 62), rng.uniform(0.09, 0.25)
        snare_hz, snare_decay = rng.uniform(160, 240), rng.uniform(0.07, 0.17)
        hat_low, tom_hz = rng.uniform(5500, 8000), rng.uniform(75, 110)
        closed, opened = rng.uniform(0.018, 0.045), rng.uniform(0.12, 0.25)
        side = float(rng.choice([-1.0, 1.0]))
        # Name: place between the speakers, and how it is struck.
        self._drums: dict[str, tuple[float, Callable[[], Array]]] = {
            "kick": (0.0, lambda: self._kick(kick_hz, kick_decay)),
            "snare": (
                0.05 * side,
                lambda: self._clap(snare_decay) if clap else self._snare(snare_hz, snare_decay),
            ),
            "hat": (0.35 * side, lambda: self._cymbal(hat_low, closed, 0.25)),
            "open": (0.35 * side, lambda: self._cymbal(hat_low, opened, 1.0) * 0.8),
            "crash": (-0.5 * side, lambda: self._cymbal(3500.0, 0.5, 2.0) * 0.9),
            "high tom": (0.3 * side, lambda: self._tom(tom_hz * 1.7)),
            "low tom": (-0.45 * side, lambda: self._tom(tom_hz)),
        }
        self._takes: dict[str, list[Array]] = {}

    def takes(self, name: str) -> list[Array]:
        """Return the takes of one drum, each [channel, sample]."""
        if name not in self._takes:
            position, strike = self._drums[name]
            count = 1 if name == "crash" else _VARIANTS
            self._takes[name] = [pan(strike(), position) for _ in range(count)]
        return self._takes[name]

    def _clock(self, seconds: float) -> Array:
        return np.arange(round(seconds * self.rate)) / self.rate

    def _noise(self, clock: Array, decay: float) -> Array:
        return self.rng.normal(size=clock.size) * np.exp(-clock / decay)

    def _kick(self, hz: float, decay: float) -> Array:
        clock = self._clock(5 * decay)
        drop, fall = self.rng.uniform(2.5, 3.2) * hz, 0.018
        phase = hz * clock + drop * fall * (1 - np.exp(-clock / fall))
        body = np.tanh(1.6 * np.sin(2 * np.pi * phase)) * np.exp(-clock / decay)
        click = band(self._noise(clock, 0.004), self.rate, low=1500.0, high=6000.0)
        return (0.8 * body + 0.6 * click) * np.minimum(1.0, (5 * decay - clock) / 0.01)

    def _snare(self, hz: float, decay: float) -> Array:
        clock = self._clock(6 * decay)
        hz *= self.rng.uniform(0.99, 1.01)
        shell = np.sin(2 * np.pi * hz * clock) + 0.6 * np.sin(2 * np.pi * 1.62 * hz * clock + 1)
        wires = band(self._noise(clock, decay), self.rate, low=1200.0, high=9500.0)
        return 0.6 * shell * np.exp(-clock / (0.5 * decay)) + 1.0 * wires

    def _clap(self, decay: float) -> Array:
        clock = self._clock(6 * decay)
        hits = sum(
            np.where(clock >= at, np.exp(-np.maximum(0, clock - at) / 0.006), 0.0)
            for at in (0.0, 0.011, 0.023)
        )
        tail = np.where(clock >= 0.03, np.exp(-clock / decay), 0.0)
        noise = self.rng.normal(size=clock.size) * (hits + 0.7 * tail)
        return 1.3 * band(noise, self.rate, low=900.0, high=5000.0)

    def _cymbal(self, low: float, decay: float, ring: float) -> Array:
        clock = self._clock(6 * decay)
        metal = np.zeros(clock.size)
        for ratio in (1.0, 1.342, 1.231, 1.654, 1.931, 2.532):
            metal += np.where((0.52 * low * ratio * clock + ratio) % 1.0 < 0.5, 1.0, -1.0)
        mixed = self.rng.normal(size=clock.size) + 0.2 * ring * metal
        return 0.5 * band(mixed * np.exp(-clock / decay), self.rate, low=low)

    def _tom(self, hz: float) -> Array:
        clock = self._clock(0.7)
        hz *= self.rng.uniform(0.98, 1.02)
        phase = hz * clock + 0.5 * hz * 0.04 * (1 - np.exp(-clock / 0.04))
        body = np.sin(2 * np.pi * phase) + 0.3 * np.sin(2 * np.pi * 1.5 * phase)
        skin = band(self._noise(clock, 0.03), self.rate, low=400.0, high=4000.0)
        return 0.9 * body * np.exp(-clock / 0.13) + 0.3 * skin


def render_drums(score: Score, rng: np.random.Generator) -> Array:
    """Return the drums of ``score``, [channel, sample]."""
    kit = Kit(rng, score.sample_rate)
    patterns = {
        kind: tuple(str(rng.choice(lines)) for lines in (_KICKS, _SNARES, _HATS))
        for kind in ("verse", "chorus")
    }
    open_chorus = rng.random() < 0.5
    sparse = {kind for kind in ("intro", "break") if rng.random() < 0.5}
    track = np.zeros((2, score.samples))
    for section, bar, first in score.section_bars():
        kick, snare, hat = patterns["chorus" if section.kind == "chorus" else "verse"]
        if section.kind in sparse:
            kick, snare = "3.......3.......", "................"
        lines = [("kick", kick), ("snare", snare), ("hat", hat)]
        if section.kind == "chorus" and open_chorus:
            lines[2] = ("open", "..2...2...2...2.")
        if bar == 0 and section.kind in ("chorus", "verse"):
            lines.append(("crash", "2..............."))
        for name, line in _with_fill(rng, section, bar, lines):
            _play_line(track, score, rng, kit.takes(name), _hits(first, line))
    track *= score.gate("drums", attack=0.002, release=0.1)
    room = room_response(rng, rng.uniform(0.18, 0.4), score.sample_rate)
    # The bus compressor of a real mix: peaks are rounded, so the kit is not all crest.
    level = 3.0 * np.sqrt(np.mean(track**2)) + 1e-12
    return add_room(level * np.tanh(track / level), room, rng.uniform(0.12, 0.3))


def _with_fill(
    rng: np.random.Generator, section: Section, bar: int, lines: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    if bar != section.bars - 1 or section.bars < 2 or rng.random() < 0.25:
        return lines
    fill = str(rng.choice(_FILLS))
    start = len(fill) - len(fill.lstrip("."))
    quiet = [(name, line[:start] + "." * (16 - start)) for name, line in lines]
    half = (start + 16) // 2
    high, low = fill[:half] + "." * (16 - half), "." * half + fill[half:]
    return [*quiet, ("high tom", high), ("low tom", low)]


def _hits(first: int, line: str) -> list[tuple[float, float]]:
    """Return (beat, velocity) of each mark of a line that starts on beat ``first``."""
    marks = enumerate(line)
    return [(first + step / 4, int(mark) / 3) for step, mark in marks if mark != "."]


def _play_line(
    track: Array,
    score: Score,
    rng: np.random.Generator,
    takes: list[Array],
    hits: list[tuple[float, float]],
) -> None:
    for beat, velocity in hits:
        if score.plays("drums", beat):
            loudness = velocity * rng.uniform(0.88, 1.08)
            late = rng.normal() * 0.002  # a person plays
            start = round((score.seconds_at(beat) + late) * score.sample_rate)
            add_at(track, takes[rng.integers(len(takes))] * loudness, max(0, start))
