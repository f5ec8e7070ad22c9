"""Writes what is sung: phrases of syllables over the chords, with rests to breathe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.synthetic.composition import BEATS_A_BAR, Note, Score

_LENGTHS = np.array([0.5, 1.0, 1.5, 2.0])
_CHANCES = np.array([0.48, 0.32, 0.12, 0.08])
_STEPS = np.array([-3, -2, -1, 0, 1, 2, 3, 4])
_STEP_CHANCES = np.array([0.05, 0.13, 0.24, 0.16, 0.22, 0.12, 0.05, 0.03])
_PHRASE_BEATS = 2 * BEATS_A_BAR


@dataclass(frozen=True)
class Motif:
    """The shape of a phrase: onset, length (beats) and move (scale steps) of each syllable."""

    onsets: tuple[float, ...]
    lengths: tuple[float, ...]
    moves: tuple[int, ...]


def sing_melody(score: Score, rng: np.random.Generator, centre: int) -> list[list[Note]]:
    """Return the phrases of the voice in order, each a run of notes.

    Args:
        centre: MIDI pitch in the middle of the singer's range.
    """
    motifs = {kind: [_motif(rng) for _ in range(2)] for kind in ("verse", "chorus")}
    phrases = []
    for section in score.sections:
        lift = 3 if section.kind == "chorus" else 0
        shapes = motifs["chorus" if section.kind == "chorus" else "verse"]
        bars = (section.first_bar, section.first_bar + section.bars)
        begin, end = (bar * BEATS_A_BAR for bar in bars)
        for number, first in enumerate(range(begin, end, _PHRASE_BEATS)):
            notes = _phrase(score, rng, shapes[number % 2], (first, end), centre + lift)
            if notes:
                phrases.append(notes)
    return phrases


def _motif(rng: np.random.Generator) -> Motif:
    """Fill six or seven of eight beats; the rest of them is for breath."""
    at, end = float(rng.choice([0.0, 0.0, 0.5, 1.0])), rng.uniform(5.8, 7.2)
    onsets, lengths = [], []
    while at < end - 0.5:
        length = float(rng.choice(_LENGTHS, p=_CHANCES))
        if end - at - length < 0.75:
            length = max(0.75, end - at)
        onsets.append(at)
        lengths.append(length)
        at += length
    moves = rng.choice(_STEPS, len(onsets), p=_STEP_CHANCES)
    return Motif(tuple(onsets), tuple(lengths), tuple(int(move) for move in moves))


def _phrase(
    score: Score, rng: np.random.Generator, motif: Motif, span: tuple[int, int], centre: int
) -> list[Note]:
    """Return the notes of ``motif`` from the first to the last beat of ``span``."""
    first, last = span
    ladder = np.array(
        [12 * octave + score.pitch_of(step) for octave in range(2, 8) for step in range(7)]
    )
    here = int(np.argmin(np.abs(ladder - centre)))
    notes = []
    for onset, length, move in zip(motif.onsets, motif.lengths, motif.moves, strict=True):
        beat = first + onset
        here += move
        # Out of the comfortable range a singer turns back.
        if abs(ladder[here] - centre) > 8:
            here -= 2 * move or int(np.sign(ladder[here] - centre)) * 3
        if onset % 2 == 0:
            here = _nearest_chord_tone(ladder, here, score.chord_at(beat))
        inside = beat + 0.5 <= last and score.plays("vocals", beat)
        if inside:
            beats = _until_rest(score, beat, min(length, last - beat))
            notes.append(Note(beat, beats, int(ladder[here]), rng.uniform(0.75, 1.0)))
    return notes


def _nearest_chord_tone(ladder: np.ndarray, here: int, chord: tuple[int, ...]) -> int:
    for step in (0, 1, -1, 2, -2):
        if ladder[here + step] % 12 in chord:
            return here + step
    return here


def _until_rest(score: Score, beat: float, beats: float) -> float:
    """Shorten a note that would ring into a rest of the part."""
    end = beat + 0.25
    while end < beat + beats and score.plays("vocals", end):
        end += 0.25
    return min(beats, end - beat)
