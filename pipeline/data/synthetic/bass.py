"""A bass that follows the roots of the chords in one of four timbres."""

from __future__ import annotations

import numpy as np

from pipeline.data.synthetic.composition import Note, Score
from pipeline.data.synthetic.space import add_room, pan, room_response
from pipeline.data.synthetic.tones import Array, add_at, band, control, hertz, partials, saw

TIMBRES = ("saw", "sub", "square", "pluck")
# (beat in the bar, beats, interval): r root, o octave, f fifth of the chord.
_FIGURES = (
    ((0, 3.5, "r"), (3.5, 0.5, "f")),
    ((0, 1, "r"), (1, 1, "r"), (2, 1, "r"), (3, 1, "f")),
    tuple((step / 2, 0.5, "r") for step in range(8)),
    ((0, 1.5, "r"), (1.5, 0.5, "o"), (2, 1, "r"), (3, 0.5, "f"), (3.5, 0.5, "o")),
    tuple((step / 2, 0.5, "r" if step % 2 == 0 else "o") for step in range(8)),
    ((0, 0.75, "r"), (0.75, 0.75, "r"), (1.5, 0.5, "f"), (2.5, 0.5, "r"), (3, 1, "o")),
    ((0, 1, "r"), (1.5, 1, "r"), (3, 0.5, "f"), (3.5, 0.5, "r")),
)
_LOWEST = 28  # the open E string


def render_bass(score: Score, rng: np.random.Generator) -> Array:
    """Return the bass of ``score``, [channel, sample]."""
    notes = _line(score, rng)
    timbre = str(rng.choice(TIMBRES))
    line = _plucked(score, rng, notes) if timbre == "pluck" else _synth(score, rng, notes, timbre)
    line *= score.gate("bass", release=0.05)
    room = room_response(rng, 0.2, score.sample_rate)
    return add_room(pan(line, 0.0), room, rng.uniform(0.0, 0.06))


def _line(score: Score, rng: np.random.Generator) -> list[Note]:
    figures = {kind: _FIGURES[rng.integers(len(_FIGURES))] for kind in ("verse", "chorus")}
    notes = []
    for section, _, first in score.section_bars():
        chord = score.chord_at(first)
        root = _LOWEST + (chord[0] - _LOWEST) % 12
        fifth = root + (chord[2] - chord[0]) % 12
        pitches = {"r": root, "o": root + 12, "f": fifth}
        for at, beats, interval in figures["chorus" if section.kind == "chorus" else "verse"]:
            entry = score.entry("bass", first + at, beats)
            if entry is not None:
                notes.append(Note(*entry, pitches[interval], rng.uniform(0.75, 1.0)))
    return notes


def _synth(score: Score, rng: np.random.Generator, notes: list[Note], timbre: str) -> Array:
    """Return one oscillator that plays all notes through a filter that closes on each, [sample]."""
    hold, legato = rng.uniform(0.1, 0.4), rng.uniform(0.75, 0.97)
    glide = rng.choice([0.004, 0.02])
    pitch_points: tuple[list[float], list[float]] = [0.0], [float(notes[0].pitch if notes else 40)]
    loud_points: tuple[list[float], list[float]] = [0.0], [0.0]
    bright_points: tuple[list[float], list[float]] = [0.0], [0.0]
    for note in notes:
        start = score.seconds_at(note.beat)
        end = start + max(0.06, legato * note.beats * score.beat_seconds)
        pitch_points[0].extend([start, start + glide])
        pitch_points[1].extend([pitch_points[1][-1], float(note.pitch)])
        loud_points[0].extend([start, start + 0.006, end - 0.03, end])
        loud_points[1].extend([0.0, note.velocity, 0.75 * note.velocity, 0.0])
        closing = np.linspace(0.0, end - start, 6)
        bright_points[0].extend([start, *(start + 0.004 + closing[:-1]), end])
        bright_points[1].extend([0.0, *np.exp(-closing[:-1] / hold).tolist(), 0.0])
    size, rate = score.samples, score.sample_rate
    frequency = hertz(control(*pitch_points, size, rate))
    loudness = control(*loud_points, size, rate)
    ramp, phase = saw(frequency, rate)
    if timbre == "sub":
        drive = rng.uniform(1.2, 2.5)
        return np.tanh(drive * np.sin(2 * np.pi * phase)) * loudness
    if timbre == "square":
        half = np.where(phase < 0.5, 1.0, -1.0)
        ramp = 0.5 * band(half, rate, high=2500.0) + 0.3 * ramp
    dark = band(ramp, rate, high=rng.uniform(160.0, 280.0))
    bright = band(ramp, rate, high=rng.uniform(700.0, 1600.0))
    return (dark + 0.6 * bright * control(*bright_points, size, rate)) * loudness


def _plucked(score: Score, rng: np.random.Generator, notes: list[Note]) -> Array:
    """Return a plucked string: each partial dies faster than the one below, [sample]."""
    rate, track = score.sample_rate, np.zeros(score.samples)
    order = np.arange(1.0, 25.0)
    where, damping, ring = rng.uniform(0.12, 0.3), rng.uniform(0.02, 0.08), rng.uniform(0.5, 1.2)
    strings: dict[int, Array] = {}
    for note in notes:
        if note.pitch not in strings:
            stretch = order * np.sqrt(1 + 4e-5 * order**2)
            strings[note.pitch] = partials(
                hertz(note.pitch) * stretch,
                np.sin(np.pi * where * order) / order**1.6,
                ring / (1 + damping * order**2),
                round(2.5 * rate),
                rate,
            )
        length = min(round((note.beats * score.beat_seconds + 0.02) * rate), round(2.5 * rate))
        fade = np.minimum(1.0, np.arange(length)[::-1] / (0.03 * rate))
        sound = strings[note.pitch][:length] * fade * note.velocity
        add_at(track, sound, round(score.seconds_at(note.beat) * rate))
    return track
