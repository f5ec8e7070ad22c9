"""Cuts long signals into overlapping windows and joins them again, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lasaft.config import ModelConfig
from lasaft.errors import ConfigError


@dataclass(frozen=True)
class ChunkGrid:
    """Chunk i stands for the samples [i * hop, i * hop + length) of the signal.

    Args:
        length: of a chunk, in samples (or frames), at least 1.
        trim: context on each side of it that the network sees and that is thrown away, at least 1.
        hop: from chunk to chunk, from half of ``length`` to ``length``: at most two overlap.
    """

    length: int
    trim: int
    hop: int

    def __post_init__(self) -> None:
        assert self.trim >= 1
        assert self.length <= 2 * self.hop <= 2 * self.length

    @property
    def window(self) -> int:
        """What the network sees at once: a chunk and the context on its sides."""
        return self.length + 2 * self.trim

    @property
    def overlap(self) -> int:
        """Samples that a chunk has in common with the next one."""
        return self.length - self.hop

    def starts(self, samples: int) -> range:
        """Return the first sample of each chunk of a signal of so many ``samples``."""
        count = 1 + max(0, math.ceil((samples - self.length) / self.hop))
        return range(0, count * self.hop, self.hop)


def chunk_frames(config: ModelConfig) -> int:
    """Return how many STFT frames the network sees at once when it separates.

    This is ``num_frame`` as in training, but where the trimmed context would leave nothing of such
    a window, or the STFT cannot reflect it at its ends: a training window and the context.
    """
    least = max(2 * config.trim_frames, config.n_fft // 2 // config.hop_length) + 2
    if config.num_frame >= least:
        return config.num_frame
    return math.ceil((config.num_frame + least) / config.time_reduction) * config.time_reduction


def wave_grid(config: ModelConfig, overlap_ratio: float) -> ChunkGrid:
    """Return the chunks of a waveform, in samples.

    Args:
        overlap_ratio: share of a chunk that the next one separates again, from 0 to 0.5.

    Raises:
        ConfigError: ``overlap_ratio`` is out of its range.
    """
    if not 0 <= overlap_ratio <= 0.5:
        raise ConfigError(f"overlap_ratio: got {overlap_ratio}, allowed: from 0 to 0.5")
    trim = config.trim_frames * config.hop_length
    length = (chunk_frames(config) - 1) * config.hop_length - 2 * trim
    return ChunkGrid(length, trim, length - int(length * overlap_ratio))


def frame_grid(config: ModelConfig) -> ChunkGrid:
    """Return the chunks of a spectrogram, in frames: one after the other, no overlap."""
    length = chunk_frames(config) - 2 * config.trim_frames
    return ChunkGrid(length, config.trim_frames, length)


@dataclass(frozen=True)
class Chunk:
    """A window [..., grid.window] of the signal and the place of its chunk.

    ``length`` is the number of samples of the chunk that lie inside the signal.
    """

    window: Tensor
    length: int
    first: bool
    last: bool


def cut(blocks: Iterable[Tensor], grid: ChunkGrid) -> Iterator[Chunk]:
    """Yield the chunks of a signal that arrives in ``blocks`` [..., sample]; outside it is zero.

    Holds one window and one block at a time. Nothing is yielded for a signal without samples.
    """
    held: Tensor | None = None
    first = True
    for block in blocks:
        if held is None:
            held = block.new_zeros((*block.shape[:-1], grid.trim))
        held = torch.cat((held, block), dim=-1)
        while held.shape[-1] >= grid.window:
            # The context behind the chunk is there: the signal goes on, so this is not the last.
            yield Chunk(held[..., : grid.window], grid.length, first, last=False)
            held, first = held[..., grid.hop :], False
    while held is not None and held.shape[-1] > grid.trim:
        left = held.shape[-1] - grid.trim
        last = left <= grid.length
        padded = torch.nn.functional.pad(held, (0, max(0, grid.window - held.shape[-1])))
        yield Chunk(padded[..., : grid.window], min(left, grid.length), first, last)
        held, first = None if last else held[..., grid.hop :], False


def overlap_add(pieces: Iterable[tuple[Chunk, Tensor]], grid: ChunkGrid) -> Iterator[Tensor]:
    """Join the separated chunks [..., grid.length]; where two overlap, each counts one half.

    So the weights sum to exactly 1 at every sample.
    """
    tail: Tensor | None = None
    for chunk, piece in pieces:
        if tail is not None and grid.overlap:
            head = 0.5 * tail + 0.5 * piece[..., : grid.overlap]
            piece = torch.cat((head, piece[..., grid.overlap :]), dim=-1)  # noqa: PLW2901
        yield piece[..., : chunk.length if chunk.last else grid.hop]
        tail = piece[..., grid.hop :]
