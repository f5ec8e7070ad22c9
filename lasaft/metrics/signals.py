"""References and estimates of one track as rows of samples that are read in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lasaft.errors import AudioError

Array = np.ndarray
_MAX_SOURCES = 100  # museval's limit
PIECE = 1 << 18  # samples read at a time where windows may be long
_PROBE = 4096  # samples read first when looking for a sound: most stretches are not silent


def _padded(samples: Array, before: int, length: int) -> Array:
    if len(samples) == length:
        return samples
    padded = np.zeros(length)
    padded[before : before + len(samples)] = samples
    return padded


@dataclass(frozen=True)
class Signals:
    """References and estimates of the same sources, read as float64 and padded with zeros.

    Attributes:
        rows: one entry per signal: references [source x channel], then estimates in that order;
            each is the list of 1-D arrays whose sum is the signal.
        sources: number of sources.
        channels: channels of each source.
        samples: length of the references; estimates are read as zeros beyond their own end.
    """

    rows: list[list[Array]]
    sources: int
    channels: int
    samples: int

    @property
    def references(self) -> int:
        """Number of reference rows, which is also the number of estimate rows."""
        return self.sources * self.channels

    def read(self, row: int, start: int, stop: int) -> Array:
        """Return samples ``start`` to ``stop`` of one row, zeros outside [0, samples)."""
        inside = slice(max(start, 0), max(min(stop, self.samples), 0))
        first, *others = (part[inside].astype(np.float64, copy=False) for part in self.rows[row])
        total = first
        for other in others:
            total = _padded(total, 0, max(len(total), len(other)))
            total = total + _padded(other, 0, len(total))
        return _padded(total, inside.start - start, stop - start)

    def read_all(self, start: int, stop: int) -> Array:
        """Return samples ``start`` to ``stop``, inside the signals, of all rows [row, sample].

        float32 where all rows are so, else float64.
        """
        exact = all(len(parts) == 1 and parts[0].dtype == np.float32 for parts in self.rows)
        samples = np.zeros((len(self.rows), stop - start), np.float32 if exact else np.float64)
        for row, parts in zip(samples, self.rows, strict=True):
            for part in parts:
                found = part[start:stop]
                row[: len(found)] += found
        return samples

    def part(self, start: int, stop: int) -> Signals:
        """Return the stretch from ``start`` to ``stop`` as signals of their own."""
        rows = [[part[start:stop] for part in parts] for parts in self.rows]
        return replace(self, rows=rows, samples=min(stop, self.samples) - start)

    def without(self, references: Array) -> Signals:
        """Return the signals with zeros for the reference rows where the mask is true."""
        gone = [*references, *[False] * self.references]
        rows = [
            [np.zeros(0)] if drop else parts for parts, drop in zip(self.rows, gone, strict=True)
        ]
        return replace(self, rows=rows)

    def is_silent(self, first_row: int, start: int, stop: int) -> bool:
        """Say whether the channels from ``first_row`` on add up to zero at every sample."""
        size = _PROBE
        while start < stop:
            end = min(stop, start + size)
            total = self.read(first_row, start, end)
            for row in range(first_row + 1, first_row + self.channels):
                total = total + self.read(row, start, end)
            if np.any(total != 0):
                return False
            start, size = end, PIECE
        return True

    def any_silent(self, start: int, stop: int) -> bool:
        """Say whether any reference or estimate is silent from ``start`` to ``stop``."""
        firsts = range(0, len(self.rows), self.channels)
        return any(self.is_silent(first, start, stop) for first in firsts)


def _as_arrays(name: str, sources: Any) -> list[Array]:
    arrays = []
    for index, source in enumerate(sources):
        array = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
        if array.ndim != 2:
            raise AudioError(
                f"{name}[{index}]: shape {array.shape}; each source must be [channel, sample]"
            )
        if array.dtype.kind not in "fiu":
            raise AudioError(f"{name}[{index}]: dtype {array.dtype}; samples must be real numbers")
        arrays.append(array)
    if not 1 <= len(arrays) <= _MAX_SOURCES:
        raise AudioError(f"{name}: {len(arrays)} sources; 1 to {_MAX_SOURCES} are allowed")
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise AudioError(f"{name}: sources of unequal shapes {shapes}; all must be the same")
    if 0 in arrays[0].shape:
        raise AudioError(f"{name}: shape {arrays[0].shape} of a source holds no samples")
    return arrays


def as_signals(references: Any, estimates: Any) -> Signals:
    """Check references and estimates and join them; nothing is copied.

    Args:
        references: [source, channel, sample]: a NumPy array, a tensor, or a sequence of either.
        estimates: the same sources; all may be longer (cut) or shorter (zeros are added).

    Raises:
        AudioError: shapes that do not fit, no samples, or a reference or an estimate whose
            channels add up to zero at every sample (museval calls it silent).
    """
    true = _as_arrays("references", references)
    ours = _as_arrays("estimates", estimates)
    if len(true) != len(ours):
        raise AudioError(f"{len(ours)} estimates for {len(true)} references; one each is needed")
    channels, samples = true[0].shape
    if ours[0].shape[0] != channels:
        raise AudioError(
            f"estimates have {ours[0].shape[0]} channels, references {channels}; "
            "the same number is needed"
        )
    rows = [[channel] for source in (*true, *ours) for channel in source]
    signals = Signals(rows, len(true), channels, samples)
    require_sound(signals)
    return signals


def require_sound(signals: Signals) -> None:
    """Raise AudioError if a reference or an estimate is silent from beginning to end."""
    for index in range(2 * signals.sources):
        if signals.is_silent(index * signals.channels, 0, signals.samples):
            name = "references" if index < signals.sources else "estimates"
            raise AudioError(
                f"{name}[{index % signals.sources}] is silent: its channels add up to zero at "
                "every sample; BSS Eval is not defined for it"
            )


def against_rest(signals: Signals, source: int) -> Signals:
    """Return two sources: ``source``, and the sum of all the others (its accompaniment)."""
    channels, rows = signals.channels, signals.rows

    def pair(offset: int) -> Sequence[list[Array]]:
        own = offset + source * channels
        others = [offset + s * channels for s in range(signals.sources) if s != source]
        rest = [
            [part for first in others for part in rows[first + channel]]
            for channel in range(channels)
        ]
        return [*rows[own : own + channels], *rest]

    mixed = Signals(
        [*pair(0), *pair(signals.references)], sources=2, channels=channels, samples=signals.samples
    )
    require_sound(mixed)
    return mixed
