"""The STFT of a whole track as a stream of record batches, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lasaft.errors import DataError
from pipeline.manifest import FRAMES_PER_BATCH, ShardSettings


def spectrogram_batches(blocks: Iterable[Tensor], settings: ShardSettings) -> Iterator[Tensor]:
    """Yield the frames of ``torch.stft(center=True, hann window)``, never holding the track.

    Frames do not depend on the sizes of the blocks.

    Args:
        blocks: float32 [column, channel, sample], in order.
        settings: n_fft and hop_length.

    Yields:
        float16 [column, frame, 2 * channels, bins], 256 frames each, fewer in the last; the real
        parts of all channels, then the imaginary parts.

    Raises:
        DataError: the track is too short for one frame.
    """
    n_fft, hop, half = settings.n_fft, settings.hop_length, settings.n_fft // 2
    step = FRAMES_PER_BATCH * hop
    window = torch.hann_window(n_fft)
    pending: Tensor | None = None
    padded = False
    for block in blocks:
        pending = block if pending is None else torch.cat([pending, block], dim=-1)
        if not padded and pending.shape[-1] > half:
            pending = torch.cat([pending[..., 1 : half + 1].flip(-1), pending], dim=-1)
            padded = True
        # n_fft samples stay behind: the end is mirrored from them.
        while padded and pending.shape[-1] >= step + n_fft + half:
            yield _frames(pending[..., : step - hop + n_fft], window, settings)
            pending = pending[..., step:]
    if pending is None or not padded:
        samples = 0 if pending is None else pending.shape[-1]
        raise DataError(f"has {samples} samples; allowed: more than n_fft / 2 = {half}")
    pending = torch.cat([pending, pending[..., -half - 1 : -1].flip(-1)], dim=-1)
    while pending.shape[-1] >= n_fft:
        yield _frames(pending[..., : step - hop + n_fft], window, settings)
        pending = pending[..., step:]


def _frames(audio: Tensor, window: Tensor, settings: ShardSettings) -> Tensor:
    columns, channels, _ = audio.shape
    spectrum = torch.stft(
        audio.reshape(columns * channels, -1),
        settings.n_fft,
        settings.hop_length,
        window=window,
        center=False,
        return_complex=True,
    ).unflatten(0, (columns, channels))
    frames = spectrum.shape[-1]
    rows = torch.empty(columns, frames, 2 * channels, settings.bins, dtype=torch.float16)
    by_frame = spectrum.permute(0, 3, 1, 2)
    rows[:, :, :channels].copy_(by_frame.real)
    rows[:, :, channels:].copy_(by_frame.imag)
    return rows
