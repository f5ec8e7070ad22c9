"""How the files of a song become streams of one rate, length and number of channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lasaft.audio import Samples, resample
from pipeline.data.songs.audio_files import Header, read_header, sound_blocks
from pipeline.data.songs.layouts import MIXTURE
from pipeline.data.songs.wanted import Wanted

Headers = Mapping[str, Sequence[tuple[Path, Header]]]  # by column, of each file of it


@dataclass(frozen=True)
class Fit:
    """What is done to the files of a song, and what forbids it.

    Attributes:
        samples: the length of each stream then (0: unknown).
        changes: what is done; nothing where the files are as they should be.
        faults: what was found, what is allowed, what helps.
        rates: the sample rates of the files, in Hz.
    """

    samples: int
    changes: tuple[str, ...]
    faults: tuple[str, ...]
    rates: frozenset[int]


class _Said:
    """What is said of columns; that which is said of several is one line."""

    def __init__(self, every: Iterable[str]) -> None:
        self._every = list(every)
        self._of: dict[str, list[str]] = {}

    def add(self, column: str, what: str) -> None:
        self._of.setdefault(what, []).append(column)

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(f"{self._names(of)} {what}" for what, of in self._of.items())

    def _names(self, of: list[str]) -> str:
        if len(of) == 1:
            return of[0]
        return "every stem" if of == self._every else f"{', '.join(of)}: each"


def fit(headers: Headers, lacks: Sequence[str], wanted: Wanted, *, in_one: bool = False) -> Fit:
    """Return how files become streams as they are wanted.

    A mono file is both channels; other rates are resampled, if that is wanted; all streams are as
    long as the mixture, or without one as the longest: what is shorter is padded with silence, what
    is longer is cut.

    Args:
        headers: of the files of each column that has some.
        lacks: the columns that have none and should.
        in_one: all are streams of one file, which may differ in nothing.
    """
    files = [
        (column if len(found) == 1 else f"{column}/{path.name}", column, header)
        for column, found in headers.items()
        for path, header in found
    ]
    lengths = {label: _length(header, wanted) for label, _, header in files}
    whole = [lengths[label] for label, column, _ in files if column == MIXTURE]
    samples = max(whole or lengths.values(), default=0)
    changes, faults = _Said(label for label, *_ in files), _Said(label for label, *_ in files)
    for label, _, header in files:
        for what in _wrong(header, wanted, (wanted.channels,) if in_one else (1, wanted.channels)):
            faults.add(label, what)
        for what in _done(header, wanted, samples - lengths[label]):
            changes.add(label, what)
    for column, found in headers.items():
        if len(found) > 1:
            changes.add(column, f"is the sum of {len(found)} files")
    for column in lacks:
        instead = "the sum of the sources" if column == MIXTURE else "silence"
        changes.add(column, f"is missing: {instead}")
    apart = max((abs(length - samples) for length in lengths.values()), default=0)
    wrong, seconds = faults.lines, apart / wanted.sample_rate
    if seconds > (0 if in_one else wanted.length_tolerance):
        each = ", ".join(f"{label} {length}" for label, length in lengths.items())
        tolerance = (
            f", or at most {wanted.length_tolerance:g} s apart; --length_tolerance "
            f"{math.ceil(100 * seconds) / 100:g} pads and cuts them"
        )
        wrong += (
            f"unequal lengths in samples: {each}; allowed: one length{'' if in_one else tolerance}",
        )
    return Fit(samples, changes.lines, wrong, frozenset(h.sample_rate for *_, h in files))


def _wrong(header: Header, wanted: Wanted, channels: Sequence[int]) -> Iterator[str]:
    """Yield what forbids to use a file."""
    if header.channels not in channels:
        count = {1: "1 channel (mono)"}.get(header.channels, f"{header.channels} channels")
        yield f"has {count}; allowed: {wanted.channels}"
    if header.sample_rate != wanted.sample_rate and not wanted.resample:
        yield (
            f"has a sample rate of {header.sample_rate} Hz; allowed: {wanted.sample_rate}; "
            "--resample True resamples it"
        )
    if header.samples == 0:
        yield "is empty (0 samples)"


def _done(header: Header, wanted: Wanted, missing: int) -> Iterator[str]:
    """Yield what is done to a file that is so many samples too short."""
    if header.channels < wanted.channels:
        yield "is mono: both channels are it"
    if header.sample_rate != wanted.sample_rate:
        yield f"is resampled from {header.sample_rate} Hz"
    if missing:
        yield f"is {'padded' if missing > 0 else 'cut'} by {abs(missing)} samples"


def _length(header: Header, wanted: Wanted) -> int:
    """Return the samples of a file when it is resampled, if that is wanted."""
    was, becomes = header.sample_rate, wanted.sample_rate if wanted.resample else header.sample_rate
    return (2 * header.samples * becomes + was) // (2 * was)  # rounded


def fitted_blocks(
    files: Sequence[Sequence[Path]],
    fitted: Fit,
    wanted: Wanted,
    size: int,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Tensor]:
    """Read the files of columns as streams that fit.

    Args:
        files: of each column, which are summed; without one it is silence.
        fitted: without faults.
        size: samples in a block; the last may be shorter.
        start: the first sample.
        stop: the sample after the last (None: the end).

    Yields:
        float32 [column, channel, sample].

    Raises:
        AudioError: a file is damaged.
    """
    stop = fitted.samples if stop is None else stop
    streams = [[_waves(file, wanted, size, start) for file in column] for column in files]
    for at in range(start, stop, size):
        block = torch.zeros(len(files), wanted.channels, min(size, stop - at))
        for column, parts in zip(block, streams, strict=True):
            for part in parts:
                wave = torch.from_numpy(next(part, np.zeros((1, 0), np.float32)))
                held = min(wave.shape[1], column.shape[1])
                column[:, :held] += wave[:, :held]  # mono goes to each channel
        yield block


def _waves(file: Path, wanted: Wanted, size: int, start: int) -> Iterator[Samples]:
    """Yield a file at the wanted rate from a sample on, in blocks of one size."""
    header = read_header(file)
    as_it_is = header.sample_rate == wanted.sample_rate
    first = min(start, header.samples) if as_it_is else 0
    read = (block[0].numpy() for block in sound_blocks([file], size, first))
    waves = resample(read, header.sample_rate, wanted.sample_rate)
    return _cut_up(waves, size, 0 if as_it_is else start)


def resampled(blocks: Iterable[Tensor], rate: int, wanted: int, size: int) -> Iterator[Tensor]:
    """Yield blocks [stream, stereo channel, sample] at another rate, in blocks of one size."""
    flat = (block.flatten(0, 1).numpy() for block in blocks)
    for wave in _cut_up(resample(flat, rate, wanted), size):
        yield torch.from_numpy(wave).unflatten(0, (-1, 2))


def _cut_up(waves: Iterable[Samples], size: int, skip: int = 0) -> Iterator[Samples]:
    """Yield waves [channel, sample] in blocks of one size, the last shorter, from a sample on."""
    held: Samples | None = None
    for wave in waves:
        held = wave if held is None else np.concatenate([held, wave], axis=1)
        held, skip = held[:, skip:], max(0, skip - held.shape[1])
        while held.shape[1] >= size:
            yield held[:, :size]
            held = held[:, size:]
    if held is not None and held.shape[1]:
        yield held
