"""Composes one song: four parts over one score, balanced like a mix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lasaft.config import MUSDB18_SOURCES
from pipeline.data.synthetic.bass import render_bass
from pipeline.data.synthetic.composition import write_score
from pipeline.data.synthetic.drums import render_drums
from pipeline.data.synthetic.harmony import render_other
from pipeline.data.synthetic.names import song_name
from pipeline.data.synthetic.voice import render_voice

_RENDER = {
    "vocals": render_voice,
    "drums": render_drums,
    "bass": render_bass,
    "other": render_other,
}
# A longer song is a medley of movements, each with its own score, so memory stays bounded.
_LONGEST_MOVEMENT_SECONDS = 180.0
_PEAK = 0.89  # of full scale: 1 dB for the rounding of four stems and for lossy encoders
_EDGE_SECONDS = 0.01  # fade at both ends of a movement, against clicks
# Sources differ by up to this much in energy: the mixture as the estimate of a source then
# has an SDR of about -3 to -7 dB.
_BALANCE_DB = 1.0


@dataclass(frozen=True)
class Song:
    """A song, or one movement of it.

    Args:
        name: ``Artist - Title``.
        sources: vocals, drums, bass, other: [channel, sample] with 2 channels, on the grid of
            16-bit samples.
        mixture: their exact sum, [channel, sample], below full scale.
        sample_rate: Hz.
    """

    name: str
    sources: dict[str, NDArray[np.float32]]
    mixture: NDArray[np.float32]
    sample_rate: int


def compose_movements(
    seed: int, index: int, seconds: float, sample_rate: int = 44100
) -> Iterator[Song]:
    """Yield the movements of song ``index`` of ``seed``: the same arguments, the same samples.

    Args:
        seed: not negative.
        index: of the song, not negative.
        seconds: length of all movements together.
        sample_rate: Hz; 22 050 or more, or the cymbals have no room.
    """
    samples = round(seconds * sample_rate)
    count = max(1, math.ceil(seconds / _LONGEST_MOVEMENT_SECONDS))
    ends = [samples * (number + 1) // count for number in range(count)]
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        yield _compose([seed, index, number], song_name(seed, index), end - start, sample_rate)


def _compose(key: list[int], name: str, samples: int, sample_rate: int) -> Song:
    # Every part draws from its own stream: a change in one leaves the others as they are.
    score = write_score(np.random.default_rng([*key, 0]), samples, sample_rate)
    balance = np.random.default_rng([*key, 1]).uniform(
        -_BALANCE_DB, _BALANCE_DB, len(MUSDB18_SOURCES)
    )
    edge = np.minimum(np.arange(samples), np.arange(samples)[::-1]) / (_EDGE_SECONDS * sample_rate)
    edge = np.minimum(1.0, edge)
    stems: dict[str, NDArray[np.float32]] = {}
    for number, source in enumerate(MUSDB18_SOURCES):
        stem = _RENDER[source](score, np.random.default_rng([*key, 2 + number])) * edge
        energy = float(np.mean(stem**2))
        stem *= 10.0 ** (balance[number] / 20.0) / math.sqrt(energy + 1e-12)
        stems[source] = stem.astype(np.float32)
    peak = max(float(np.abs(wave).max()) for wave in (_sum(stems), *stems.values()))
    gain = np.float32(32768.0 * _PEAK / max(peak, 1e-9))
    for stem in stems.values():
        np.divide(np.rint(np.multiply(stem, gain, out=stem), out=stem), 32768, out=stem)
    return Song(name, stems, _sum(stems), sample_rate)


def _sum(stems: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    total = np.zeros_like(stems[MUSDB18_SOURCES[0]])
    for stem in stems.values():
        total += stem
    return total
