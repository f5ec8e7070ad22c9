"""The chords of a song: pads, keys, strummed guitar, arpeggios and bells."""

from __future__ import annotations

import numpy as np

from pipeline.data.synthetic.composition import BEATS_A_BAR, Note, Score, Section
from pipeline.data.synthetic.instruments import instrument
from pipeline.data.synthetic.space import add_room, pan, room_response
from pipeline.data.synthetic.tones import Array, add_at, ensemble, hertz

# (beat in the bar, beats).
_COMPING = (
    ((0, 4),), ((0, 2), (2, 2)), ((0, 1.5), (1.5, 1), (2.5, 1.5)), ((0, 1), (1, 1), (2, 1), (3, 1)),
    ((0.5, 0.5), (1.5, 0.5), (2.5, 0.5), (3.5, 0.5)), ((0, 0.75), (0.75, 0.75), (1.5, 2.5)),
)  # fmt: skip
# (beat in the bar, which tone of the chord).
_ARPEGGIOS = tuple(
    tuple((step / 2, tone) for step, tone in enumerate(tones))
    for tones in ((0, 1, 2, 3, 2, 1, 2, 1), (0, 2, 1, 2, 3, 2, 1, 2), (3, 2, 1, 0, 1, 2, 3, 1))
)


def render_other(score: Score, rng: np.random.Generator) -> Array:
    """Return pads and chord instruments of ``score``, [channel, sample]."""
    track = np.zeros((2, score.samples))
    lead = str(rng.choice(["keys", "guitar", "arpeggio", "organ"]))
    second = str(rng.choice(["arpeggio", "bells", "keys", "guitar"]))
    second = "bells" if second == lead else second
    pad_in = {"intro", "chorus", "break"} | ({"verse", "outro"} if rng.random() < 0.5 else set())
    kinds = {section.kind for section in score.sections}
    for name, where in ((lead, kinds - {"break"}), (second, {"chorus", "break", "outro"})):
        played = [part for part in score.sections if part.kind in where]
        track += _instrument_track(score, rng, name, played)
    pads = [part for part in score.sections if part.kind in pad_in]
    track += rng.uniform(0.5, 0.9) * _pad(score, rng, pads)
    track *= score.gate("other", release=0.12)
    room = room_response(rng, rng.uniform(0.35, 0.6), score.sample_rate)
    return add_room(track, room, rng.uniform(0.15, 0.35))


def _voicing(score: Score, beat: float, lowest: int) -> list[int]:
    """Return the chord under ``beat`` in close position from ``lowest`` upwards."""
    return sorted(lowest + (pitch - lowest) % 12 for pitch in score.chord_at(beat))


def _pad(score: Score, rng: np.random.Generator, sections: list[Section]) -> Array:
    track, rate = np.zeros((2, score.samples)), score.sample_rate
    lowest, dullness = int(rng.integers(48, 56)), rng.uniform(0.8, 1.6)
    size = 1 << 17
    loops: dict[tuple[int, ...], Array] = {}
    order = np.arange(1.0, 31.0)
    for _, _, beat in score.section_bars(sections):
        chord = tuple(_voicing(score, beat, lowest))
        if chord not in loops:
            # A top octave of the root, quieter, opens the chord.
            roots = np.array([*hertz(np.array(chord)), hertz(chord[0] + 12) * 1.001])
            bands = np.outer(roots, order).ravel()
            loops[chord] = ensemble(rng, bands, np.tile(order**-dullness, roots.size), size, rate)
        start = round(score.seconds_at(beat) * rate)
        length = round((BEATS_A_BAR * score.beat_seconds + 0.25) * rate)
        first = int(rng.integers(size))
        sound = np.take(loops[chord], np.arange(first, first + length), axis=1, mode="wrap")
        ramp = np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.25 * rate)
        add_at(track, 0.16 * sound * np.sin(np.pi / 2 * np.minimum(1.0, ramp)), start)
    wobble = rng.uniform(0.3, 1.2)
    clock = np.arange(score.samples) / rate
    return track * (1.0 + 0.2 * np.sin(2 * np.pi * wobble * clock))


def _instrument_track(
    score: Score, rng: np.random.Generator, name: str, sections: list[Section]
) -> Array:
    """Return what one instrument plays in ``sections``, [channel, sample]."""
    track = np.zeros((2, score.samples))
    strike = instrument(rng, name, score.sample_rate)
    lowest, width = int(rng.integers(50, 58)), rng.uniform(0.2, 0.7)
    patterns = _ARPEGGIOS if name == "arpeggio" else _COMPING
    pattern = patterns[rng.integers(len(patterns))]
    strum = 0.014 if name == "guitar" else 0.003
    sounds: dict[int, Array] = {}
    for _, _, first in score.section_bars(sections):
        chord = _voicing(score, first, lowest + (12 if name == "bells" else 0))
        for order, note in _bar_notes(name, rng, [*chord, chord[0] + 12], pattern):
            entry = score.entry("other", first + note.beat, note.beats)
            if entry is None:
                continue
            beat, beats = entry
            if note.pitch not in sounds:
                sounds[note.pitch] = strike(note.pitch)
            length = round((beats * score.beat_seconds + 0.08) * score.sample_rate)
            sound = sounds[note.pitch][:length] * note.velocity
            fade = min(sound.size, round(0.06 * score.sample_rate))
            sound[sound.size - fade :] *= np.linspace(1.0, 0.0, fade)
            start = score.seconds_at(beat) + strum * order
            side = width * (2.0 * (note.pitch % 5) / 4.0 - 1.0)
            add_at(track, pan(sound, side), round(start * score.sample_rate))
    if name == "guitar" and rng.random() < 0.5:  # through a driven amplifier
        return 0.35 * np.tanh(rng.uniform(2.0, 6.0) * track)
    return track


def _bar_notes(
    name: str, rng: np.random.Generator, chord: list[int], pattern: tuple[tuple[float, float], ...]
) -> list[tuple[int, Note]]:
    """Return (order within the strum, note) of one bar, beats counted from its start."""
    if name == "arpeggio":
        return [
            (0, Note(at, 0.75, chord[int(which) % len(chord)], rng.uniform(0.6, 1.0)))
            for at, which in pattern
        ]
    if name == "bells":
        beats = np.sort(rng.choice(8, int(rng.integers(2, 5)), replace=False)) / 2
        return [
            (0, Note(float(beat), 2.0, int(rng.choice(chord)), rng.uniform(0.5, 0.9)))
            for beat in beats
        ]
    return [
        (order, Note(at, 0.95 * beats, pitch, rng.uniform(0.55, 0.8)))
        for at, beats in pattern
        for order, pitch in enumerate(chord[:4])
    ]
