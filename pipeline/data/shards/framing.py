"""The STFT of a track as a stream of record batches, in bounded memory, whole or in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lasaft.errors import DataError
from pipeline.data.shards.format import batch_rows
from pipeline.data.shards.manifest import FRAMES_PER_BATCH, ShardSettings


@dataclass(frozen=True)
class Part:
    """Some frames of a track, and the samples that they are made from."""

    number: int  # from 0; each part is one shard
    first_frame: int  # the track's frame that is the part's first
    frames: int  # how many there are
    start: int  # the first sample to read
    stop: int  # the sample after the last to read
    samples: int  # length of the whole track


def parts_of(samples: int, settings: ShardSettings) -> list[Part]:
    """Return the parts of a track of ``samples``, one for each shard."""
    half, hop, full = settings.n_fft // 2, settings.hop_length, settings.frames_per_shard
    later = settings.shift(settings.phases - 1)
    total = settings.frames(samples)
    parts = []
    for number, first in enumerate(range(0, total, full)):
        frames = min(full, total - first)
        # The end of a track is mirrored from its last half window.
        start = max(0, min(first * hop - half, samples - half - later - 1))
        windows_end, own_end = (first + frames - 1) * hop + half + later + 1, (first + frames) * hop
        stop = min(samples, max(windows_end, own_end))
        parts.append(Part(number, first, frames, start, stop, samples))
    return parts


def spectrogram_batches(
    blocks: Iterable[Tensor], settings: ShardSettings, part: Part | None = None
) -> Iterator[Tensor]:
    """Yield the frames of ``torch.stft(center=True, hann window)``, never holding the track.

    Frames depend neither on the sizes of the blocks nor on the parts.

    Args:
        blocks: float32 [column, channel, sample], in order; those of ``part``, if it is given.
        settings: n_fft, hop_length and phases: the frames of further grids come later.
        part: make these frames only (None: the whole track).

    Yields:
        float16 [column, frame, 2 * channels, bins], 256 frames each, fewer in the last; the real
        parts of all channels, then the imaginary parts.

    Raises:
        DataError: the track is too short for one frame.
    """
    n_fft, hop, half = settings.n_fft, settings.hop_length, settings.n_fft // 2
    later = settings.shift(settings.phases - 1)
    step, window = FRAMES_PER_BATCH * hop, torch.hann_window(n_fft)
    at_start = part is None or part.first_frame == 0
    # A part may read samples before its first window, which only the mirror at the end needs.
    skip = 0 if part is None or at_start else part.first_frame * hop - half - part.start
    pending: Tensor | None = None
    seen = made = 0
    begun = False
    for block in blocks:
        seen += block.shape[-1]
        pending = block if pending is None else torch.cat([pending, block], dim=-1)
        if not begun and seen > half + later:
            if at_start:
                pending = torch.cat([pending[..., 1 : half + 1].flip(-1), pending], dim=-1)
            begun = True
        # n_fft samples stay behind: the end is mirrored from them.
        while begun and pending.shape[-1] >= skip + step + n_fft + half:
            yield _frames(pending[..., skip : skip + step - hop + n_fft + later], window, settings)
            pending = pending[..., skip + step :]
            skip = 0
            made += FRAMES_PER_BATCH
    if pending is None or not begun:
        shift = " and the last grid's shift" if later else ""
        raise DataError(f"has {seen} samples; allowed: more than n_fft / 2{shift} = {half + later}")
    mirrored = pending[..., -half - later - 1 : -1].flip(-1)
    pending = torch.cat([pending, mirrored], dim=-1)[..., skip:]
    left = (settings.frames(seen) if part is None else part.frames) - made
    for count in batch_rows(left):
        yield _frames(pending[..., : (count - 1) * hop + n_fft + later], window, settings)
        pending = pending[..., step:]


def _frames(audio: Tensor, window: Tensor, settings: ShardSettings) -> Tensor:
    """Return the frames of every column; of the last samples only the last grid has a use."""
    streams, channels, samples = audio.shape
    n_fft, hop, sources = settings.n_fft, settings.hop_length, len(settings.sources)
    frames = (samples - settings.shift(settings.phases - 1) - n_fft) // hop + 1
    columns = len(settings.columns)
    rows = torch.empty(columns, frames, 2 * channels, settings.bins, dtype=torch.float16)
    of_grid = [streams] + [sources] * (settings.phases - 1)
    for grid, part in enumerate(rows.split(of_grid)):
        first = settings.shift(grid)
        flat = audio[: len(part), :, first : first + (frames - 1) * hop + n_fft].flatten(0, 1)
        flat = torch.stft(flat, n_fft, hop, window=window, center=False, return_complex=True)
        by_frame = flat.unflatten(0, (len(part), channels)).permute(0, 3, 1, 2)
        part[:, :, :channels].copy_(by_frame.real)
        part[:, :, channels:].copy_(by_frame.imag)
    return rows
