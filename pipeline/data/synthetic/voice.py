"""A singer: glottal pulses and breath through the moving formants of a made-up text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.synthetic.composition import Note, Score
from pipeline.data.synthetic.melody import sing_melody
from pipeline.data.synthetic.space import add_room, pan, room_response
from pipeline.data.synthetic.tones import (
    Array,
    add_at,
    band,
    control,
    hertz,
    low_pole,
    moving_filter,
    moving_frames,
    saw,
)

# Formants in Hz of a low voice; level of each against the first. "m" is a closed mouth.
# Source: the usual vowel charts (Peterson and Barney, 1952), rounded; upper ones made up.
_FORMANTS = {
    "a": (730, 1090, 2440, 3300, 4300),
    "e": (530, 1840, 2480, 3400, 4400),
    "i": (290, 2250, 3000, 3600, 4500),
    "o": (500, 840, 2410, 3200, 4200),
    "u": (320, 800, 2240, 3100, 4100),
    "m": (250, 1000, 2200, 3000, 4000),
}
_LEVELS = {
    "a": (1.0, 0.90, 0.50, 0.45, 0.25),
    "e": (0.9, 0.70, 0.60, 0.45, 0.25),
    "i": (0.8, 0.55, 0.60, 0.50, 0.30),
    "o": (1.0, 0.80, 0.30, 0.30, 0.15),
    "u": (1.0, 0.60, 0.25, 0.20, 0.12),
    "m": (0.6, 0.05, 0.03, 0.02, 0.01),
}
_WIDTHS = np.array([90.0, 110.0, 160.0, 220.0, 300.0])
_FRAME = 1024  # 23 ms at 44.1 kHz, about how fast a mouth moves
# Consonants: band in Hz, seconds, level.
_NOISES = {
    "s": (5000.0, 9500.0, 0.10, 0.55), "sh": (2200.0, 6000.0, 0.10, 0.60),
    "f": (1500.0, 9000.0, 0.08, 0.25), "t": (3000.0, 8000.0, 0.025, 0.60),
    "k": (1200.0, 3500.0, 0.03, 0.55), "p": (400.0, 1800.0, 0.02, 0.45),
}  # fmt: skip


@dataclass(frozen=True)
class Singer:
    """What makes one voice different from another."""

    centre: int  # MIDI pitch in the middle of the range
    formant_scale: float  # factor of all formants
    breath: float  # level of the breath against the pulses
    tilt_hz: float  # where the pulses' low-pass begins
    vibrato_hz: float  # how fast the pitch swings
    vibrato_cents: float  # how far
    glide: float  # seconds from one pitch to the next, at most


@dataclass(frozen=True)
class Syllable:
    """A note with its text: times in seconds."""

    start: float
    end: float
    note: Note
    vowel: str
    next_vowel: str
    consonant: str
    ends_phrase: bool


def render_voice(score: Score, rng: np.random.Generator) -> Array:
    """Return the singing of ``score``, [channel, sample]."""
    singer = _singer(rng)
    phrases = sing_melody(score, rng, singer.centre)
    syllables = [one for phrase in phrases for one in _text(score, rng, phrase)]
    lead = _sung(score, rng, singer, syllables) + _consonants(score, rng, syllables)
    lead *= score.gate("vocals", attack=0.15, release=0.08)
    stereo = pan(lead, 0.0)
    for side, delay in ((0, 0.017), (1, 0.023)):  # two quiet doubles make it wide
        add_at(stereo[side], rng.uniform(0.08, 0.2) * lead, round(delay * score.sample_rate))
    room = room_response(rng, rng.uniform(0.4, 0.7), score.sample_rate)
    return add_room(stereo, room, rng.uniform(0.1, 0.25))


def _singer(rng: np.random.Generator) -> Singer:
    low = rng.random() < 0.5
    return Singer(
        centre=int(rng.integers(52, 57) if low else rng.integers(61, 67)),
        formant_scale=rng.uniform(0.97, 1.05) if low else rng.uniform(1.12, 1.22),
        breath=rng.uniform(0.02, 0.09),
        tilt_hz=rng.uniform(2500.0, 6000.0),
        vibrato_hz=rng.uniform(4.8, 6.4),
        vibrato_cents=rng.uniform(40.0, 85.0),
        glide=rng.uniform(0.04, 0.09),
    )


def _text(score: Score, rng: np.random.Generator, phrase: list[Note]) -> list[Syllable]:
    """Give each note of a phrase a syllable."""
    vowels = [str(rng.choice(list("aeiou"))) for _ in phrase]
    syllables = []
    for number, note in enumerate(phrase):
        start = score.seconds_at(note.beat)
        end = start + note.beats * score.beat_seconds
        last = number == len(phrase) - 1
        following = vowels[number] if last else vowels[number + 1]
        kind = str(rng.choice(["", "m", "noise"], p=[0.25, 0.25, 0.5]))
        consonant = str(rng.choice(list(_NOISES))) if kind == "noise" else kind
        syllables.append(Syllable(start, end, note, vowels[number], following, consonant, last))
    return syllables


def _sung(
    score: Score, rng: np.random.Generator, singer: Singer, syllables: list[Syllable]
) -> Array:
    """Return the voiced part with the breath in it, [sample]."""
    size, rate = score.samples, score.sample_rate
    if not syllables:
        return np.zeros(size)
    loudness = _loudness(syllables, size, rate)
    wave, phase = saw(hertz(_pitch(score, rng, singer, syllables)), rate)
    pulse = band(wave, rate, low=60.0)
    one_pole = np.exp(-2 * np.pi * singer.tilt_hz / rate)
    pulse = low_pole(pulse, one_pole)
    # Air flows while the glottis is open, so breath comes in the rhythm of the pitch.
    breath = rng.normal(size=size) * (0.4 + np.cos(2 * np.pi * phase) ** 2) * singer.breath
    source = (pulse + breath) * loudness
    return moving_filter(source, _mouth(singer, syllables, size, rate), _FRAME)


def _pitch(
    score: Score, rng: np.random.Generator, singer: Singer, syllables: list[Syllable]
) -> Array:
    """Return the MIDI pitch with glides, scoops, vibrato and drift, [sample]."""
    rate, size = score.sample_rate, score.samples
    times, pitches = [0.0], [float(syllables[0].note.pitch)]
    v_times, depths = [0.0], [0.0]
    for one in syllables:
        pitch, glide = float(one.note.pitch), min(singer.glide, 0.4 * (one.end - one.start))
        scoop = rng.uniform(0.3, 1.2) if rng.random() < 0.3 else 0.0
        times += [
            one.start - 0.4 * glide,
            one.start,
            one.start + 0.6 * glide,
            one.end - 0.4 * glide,
        ]
        pitches += [pitches[-1], 0.5 * (pitches[-1] + pitch) - scoop, pitch, pitch]
        onset = one.start + rng.uniform(0.1, 0.22)
        if onset + 0.1 < one.end:
            v_times += [onset, onset + 0.2, one.end]
            depths += [0.0, min(1.0, (one.end - onset) / 0.5), 0.2]
    drift = np.repeat(rng.normal(size=size // 2048 + 2), 2048)[:size]
    drift = low_pole(drift, 1 - 1e-3)  # a slow, small walk
    clock = np.arange(size) / rate
    vibrato = np.sin(2 * np.pi * singer.vibrato_hz * clock + 2.0 * drift)
    depth = control(v_times, depths, size, rate) * singer.vibrato_cents / 100.0
    return control(times, pitches, size, rate) + depth * vibrato + 0.08 * drift


def _loudness(syllables: list[Syllable], samples: int, rate: int) -> Array:
    """Return the envelope of the voice, [sample]."""
    times, values = [0.0], [0.0]
    for one in syllables:
        level, length = one.note.velocity, one.end - one.start
        # A noise consonant silences the voice; between other syllables it only dips.
        noise = one.consonant in _NOISES
        dip = 0.0 if noise else 0.45 * level
        rise, fall = min(0.05, 0.25 * length), min(0.15 if one.ends_phrase else 0.03, 0.4 * length)
        times += [one.start, one.start + rise, one.start + 0.5 * length, one.end - fall, one.end]
        values += [dip, level, 0.92 * level, 0.8 * level, 0.0 if one.ends_phrase else 0.4 * level]
        if noise:
            times += [one.start - 0.06, one.start - 0.03]
            values += [0.0, 0.0]
        else:
            times.append(one.start - 0.04)
            values.append(0.0 if len(times) < 8 else 0.3 * level)
        if one.ends_phrase:
            times.append(one.end + 0.01)
            values.append(0.0)
    return control(times, values, samples, rate)


def _mouth(singer: Singer, syllables: list[Syllable], samples: int, rate: int) -> Array:
    """Return the gain of the mouth, [frame, bin]: formants that move from vowel to vowel."""
    times: list[float] = []
    shapes: list[Array] = []
    for one in syllables:
        vowel, following = _shape(one.vowel), _shape(one.next_vowel)
        move = min(0.08, 0.3 * (one.end - one.start))
        if one.consonant == "m":
            times += [one.start - 0.02, one.start + 0.3 * move]
            shapes += [_shape("m")] * 2
        times += [one.start + move, one.end - move, one.end]
        shapes += [vowel, 0.8 * vowel + 0.2 * following, 0.5 * (vowel + following)]
    frame_times = np.arange(moving_frames(samples, _FRAME)) * (_FRAME // 2) / rate
    order = np.argsort(times, kind="stable")
    points, table = np.array(times)[order], np.array(shapes)[order]
    curves = np.stack([np.interp(frame_times, points, column) for column in table.T], axis=1)
    centres, levels = curves[:, :5] * singer.formant_scale, curves[:, 5:]
    bins = np.fft.rfftfreq(_FRAME, 1 / rate)
    gain = np.full((frame_times.size, bins.size), 0.01)
    for formant in range(5):
        distance = (bins - centres[:, formant, None]) / (0.5 * _WIDTHS[formant])
        gain += levels[:, formant, None] / np.sqrt(1.0 + distance**2)
    return gain


def _shape(vowel: str) -> Array:
    """Return the five formants in Hz, then their levels, [10]."""
    return np.array([*_FORMANTS[vowel], *_LEVELS[vowel]], np.float64)


def _consonants(score: Score, rng: np.random.Generator, syllables: list[Syllable]) -> Array:
    """Return fricatives, plosives and the breaths before phrases, [sample]."""
    rate, track = score.sample_rate, np.zeros(score.samples)
    noise = rng.normal(size=2 * rate)
    filtered = {name: band(noise, rate, low, high) for name, (low, high, _, _) in _NOISES.items()}
    inhale = band(noise, rate, low=900.0, high=5000.0)
    starts_phrase = True
    for one in syllables:
        if starts_phrase and one.start > 0.5:
            breath = 0.03 * _snippet(rng, inhale, round(0.3 * rate), 2.0)
            add_at(track, breath, round((one.start - 0.42) * rate))
        if one.consonant in _NOISES:
            _, _, seconds, level = _NOISES[one.consonant]
            seconds *= rng.uniform(0.8, 1.2)
            level *= 0.22 * one.note.velocity
            start = one.start - 0.6 * seconds
            sound = level * _snippet(rng, filtered[one.consonant], round(seconds * rate), 0.7)
            add_at(track, sound, round(start * rate))
        starts_phrase = one.ends_phrase
    return track


def _snippet(rng: np.random.Generator, noise: Array, length: int, roundness: float) -> Array:
    """Return ``length`` samples from anywhere in ``noise`` under one arch."""
    first = int(rng.integers(noise.size - length))
    arch = np.sin(np.pi * np.arange(length) / length) ** roundness
    return noise[first : first + length] * arch
