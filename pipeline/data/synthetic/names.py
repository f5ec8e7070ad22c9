"""Invented names of artists and songs: no name twice in one set, safe on every file system."""

from __future__ import annotations

import math

import numpy as np

_ARTISTS = (
    "Anna Vale", "Dr. Lumen", "Café Norte", "The Paper Kites of Ulm", "Mirlo", "Jónas Birk",
    "Violet Harbour", "Ten Past Nine", "Odd & Even", "St. Elmo's Choir", "Señor Niebla", "KILOBIRD",
    "Rosa Lindqvist", "Grey Tram 44", "Hollow Pines", "Mlle. Zéphyr", "Owl Parade", "Tin Letters",
    "North By Ferry", "Élan", "Copper Hill", "Little Meridian", "Bruno Falk", "Salt Radio",
)  # fmt: skip
_FIRST = (
    "Slow", "Paper", "Borrowed", "Electric", "Seven", "Quiet", "Golden", "Half", "Winter", "Blue",
    "Broken", "Northern", "Second", "Silver", "Distant", "Open", "Crooked", "Midnight", "Gentle",
    "Yesterday's", "Glass", "Burning", "Lonely", "Secret", "Wild", "Velvet", "Mr.", "Déjà", "Empty",
    "Running", "Hidden", "Lighter", "Falling", "Perfect", "Last", "Bright",
)  # fmt: skip
_SECOND = (
    "Rivers", "Lanterns", "Summer", "Machine", "Stations", "Garden", "Satellite", "Coast",
    "Weather", "Mirrors", "Avenue", "Signals", "Harbour", "Shadow", "Orchard", "Radio", "Mountain",
    "Circus", "Promise", "Thunder", "Kitchen", "Fire", "Elevator", "Holiday", "Ghosts", "Compass",
    "Letters", "Honey", "Window", "Parade", "Tuesday", "Motel", "Feathers", "Island",
    "Nocturne", "Telephone",
)  # fmt: skip


def song_name(seed: int, index: int) -> str:
    """Return ``Artist - Title`` of song ``index``: all indices below 31 000 differ for one seed.

    The index walks through all combinations with a stride that shares no factor with their
    number, so names repeat only after the last combination. The stride is near the golden
    section of it, so neighbours have different artists.
    """
    count = len(_ARTISTS) * len(_FIRST) * len(_SECOND)
    rng = np.random.default_rng([seed, 0x6E616D65])
    offset = int(rng.integers(count))
    stride = int(0.381966 * count) + int(rng.integers(500))
    while math.gcd(stride, count) != 1:
        stride += 1
    artist, title = divmod((offset + stride * index) % count, len(_FIRST) * len(_SECOND))
    first, second = divmod(title, len(_SECOND))
    return f"{_ARTISTS[artist]} - {_FIRST[first]} {_SECOND[second]}"
