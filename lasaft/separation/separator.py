"""Separates whole songs of any length and sample rate, and whole spectrograms for validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice, tee
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lasaft.audio import BLOCK_SAMPLES, Samples, resample
from lasaft.config import ModelConfig
from lasaft.errors import ConfigError
from lasaft.fast.specialise import specialise
from lasaft.network.model import LaSAFT
from lasaft.separation.chunks import Chunk, ChunkGrid, cut, frame_grid, overlap_add, wave_grid
from lasaft.separation.waveform import CheckedBlocks, as_waveform
from lasaft.targets import members, targets_in_words

Precision = Literal["32", "bf16"]
# Complex-as-channels mixture [batch, 2 * channel, frame, bin] -> an estimate for each condition
# [batch, condition, 2 * channel, frame, bin].
Estimator = Callable[[Tensor], Tensor]
BuildEstimator = Callable[[LaSAFT, Tensor], Estimator]

# Of a spectrogram, in all windows of one call: more costs memory and gains nothing on a CPU, and on
# a GPU nothing beyond so many, if it has room for them.
_FRAMES_AT_ONCE, _FRAMES_ON_GPU = 256, 4096
# A block's input, outputs of layers, latent sources, skips: features that are held together.
_MAPS_HELD = 40


def plain_estimator(model: LaSAFT, conditions: Tensor) -> Estimator:
    """Return the network as it is, run for all ``conditions`` [condition, ...] in one batch."""

    def estimate(mixture: Tensor) -> Tensor:
        batch, count = len(mixture), len(conditions)
        repeated = mixture.repeat_interleave(count, dim=0)
        result = model.estimate(repeated, torch.cat([conditions] * batch))
        return model.to_spectrogram(result, repeated).unflatten(0, (batch, count))

    return estimate


class Separator:
    """Separates waveforms with a trained network.

    Args:
        model: the network; it is run where its weights are and set to eval mode.
        overlap_ratio: share of a chunk that is separated twice and averaged, from 0 to 0.5.
        batch_size: chunks that go through the network at once.
        shifts: passes that are averaged; the chunks of each begin elsewhere.
        precision: ``32``, or ``bf16`` for bfloat16 inside the network (about 37 dB less exact).
        build_estimator: makes the function that is run on each chunk, from the network and the
            conditions wanted (see :data:`Estimator`); default: the network's fast form for them
            (:func:`lasaft.fast.specialise.specialise`); :func:`plain_estimator`: as it was
            trained. Made when targets are first asked for: weights must not change afterwards.

    Raises:
        ConfigError: an argument is out of its range.

    >>> from lasaft.config import ModelConfig
    >>> config = ModelConfig(n_fft=256, hop_length=128, n_blocks=3, internal_channels=4)
    >>> stems = Separator(LaSAFT(config)).separate(np.zeros((2, 5000), np.float32), 44100)
    >>> {name: tuple(stem.shape) for name, stem in stems.items()}["vocals"]
    (2, 5000)
    """

    def __init__(
        self,
        model: LaSAFT,
        overlap_ratio: float = 0.5,
        batch_size: int = 1,
        precision: Precision = "32",
        *,
        shifts: int = 1,
        build_estimator: BuildEstimator | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size: got {batch_size}, allowed: 1 or more")
        if shifts < 1:
            raise ConfigError(f"shifts: got {shifts}, allowed: 1 or more")
        if precision not in ("32", "bf16"):
            raise ConfigError(f"precision: got {precision!r}, allowed: 32, bf16")
        self.config: ModelConfig = model.config
        self._grid = wave_grid(model.config, overlap_ratio)
        self._model = model.eval()
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._batch_size, self._precision, self._shifts = batch_size, precision, shifts
        self._build = build_estimator or partial(specialise, dtype=dtype)
        self._built: tuple[tuple[str, ...], Estimator] | None = None

    def separate(
        self,
        waveform: Tensor | np.ndarray,
        sample_rate: int,
        targets: str | Sequence[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, Tensor]:
        """Return an estimate of each target, as long as the waveform and with its channels.

        Args:
            waveform: floats [channel, sample] (or [sample]: mono), full scale ±1, any length.
            sample_rate: of the waveform, in Hz; the estimates have it too.
            targets: names of sources, or one of them (default: all). ``"vocals+bass"`` is the sum
                of two: of the network's estimates, or its estimate of the set (``multi_hot``).
            progress: is called with the number of samples that have just been finished.

        Returns:
            for each target float32 [channel, sample] on the CPU; nothing is clipped.

        Raises:
            AudioError: the waveform is empty, not finite, or of no usable shape or type.
            ConfigError: ``targets`` has a name that the network does not know.
        """
        names = self.targets(targets)
        audio = as_waveform(waveform)
        blocks = np.split(audio, range(BLOCK_SAMPLES, audio.shape[1], BLOCK_SAMPLES), axis=1)
        result = torch.empty((len(names), *audio.shape))
        position = 0
        for piece in self.stream(blocks, sample_rate, names):
            count = piece.shape[-1]
            result[..., position : position + count] = torch.from_numpy(piece)
            position += count
            if progress is not None:
                progress(count)
        return dict(zip(names, result, strict=True))

    def stream(
        self,
        blocks: Iterable[Samples],
        sample_rate: int,
        targets: str | Sequence[str] | None = None,
        name: object = "the waveform",
    ) -> Iterator[Samples]:
        """Separate a signal that arrives in blocks, in memory that does not grow with its length.

        Args:
            blocks: float32 [channel, sample] each, of any size.
            sample_rate: in Hz.
            targets: as for :meth:`separate`.
            name: what messages call the signal.

        Yields:
            float32 [target, channel, sample]: together as long as the input, to the sample.

        Raises:
            AudioError: the signal is empty, not finite, or has the wrong number of channels.
            ConfigError: ``targets`` has a name that the network does not know.
        """
        names = self.targets(targets)
        counted = CheckedBlocks(blocks, sample_rate, self.config.audio_channels, name)
        ours = resample(counted, sample_rate, self.config.sample_rate)
        separated = self._separate((torch.from_numpy(block) for block in ours), names)
        flat = (piece.flatten(0, 1).numpy() for piece in separated)
        position = 0
        for block in resample(flat, self.config.sample_rate, sample_rate):
            piece = block[:, : counted.samples - position]
            position += piece.shape[1]
            yield piece.reshape(len(names), counted.channels, -1)
        # Resampling there and back can lose a sample or two of the end.
        missing = counted.samples - position
        if missing:
            yield np.zeros((len(names), counted.channels, missing), np.float32)

    def targets(self, names: str | Sequence[str] | None) -> tuple[str, ...]:
        """Return ``names`` without repetitions, or all sources; ConfigError for unknown ones."""
        if names is None:
            return self.config.sources
        names = [names] if isinstance(names, str) else names
        if not names:
            raise ConfigError("targets: is empty, name at least one source")
        unknown = [name for name in names if not members(name, self.config.sources)]
        if unknown:
            raise ConfigError(
                f"targets: got {', '.join(unknown)}, allowed: "
                f"{targets_in_words(self.config.sources)}"
            )
        return tuple(dict.fromkeys(names))

    def _separate(self, blocks: Iterable[Tensor], names: tuple[str, ...]) -> Iterator[Tensor]:
        """Yield [target, channel, sample] at the network's sample rate."""
        separate = partial(self._windows_that_fit, estimator=self._estimator(names))
        shifts = [number * self._grid.hop // self._shifts for number in range(self._shifts)]
        passes = [
            _without_start(
                _separated(_later(copy, shift), self._grid, self._batch_size, separate), shift
            )
            for shift, copy in zip(shifts, tee(blocks, self._shifts), strict=True)
        ]
        return _mean(passes) if len(passes) > 1 else passes[0]

    def _windows_that_fit(self, windows: Tensor, estimator: Estimator) -> Tensor:
        """Separate as many windows at once as the device's memory holds, from now on."""
        most = self._batch_size
        try:
            return torch.cat([self._windows(piece, estimator) for piece in windows.split(most)])
        except torch.OutOfMemoryError:
            if most == 1:
                raise
        self._batch_size = most // 2
        torch.cuda.empty_cache()
        return self._windows_that_fit(windows, estimator)

    def _windows(self, windows: Tensor, estimator: Estimator) -> Tensor:
        """[batch, channel, window] -> [batch, target, channel, chunk], both on the CPU."""
        model, grid = self._model, self._grid
        batch, channels, _ = windows.shape
        device = _device(model)
        with torch.no_grad():
            spec = model.spectrogram.stft(_to_network(windows.to(device), self.config))
            with torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16"):
                estimate = estimator(spec)
            count = estimate.shape[1]
            waves = model.spectrogram.istft(estimate.flatten(0, 1).float(), grid.window)
            waves = waves[..., grid.trim : grid.trim + grid.length].unflatten(0, (-1, count))
            return _from_network(waves, batch, channels).cpu()

    def _estimator(self, names: tuple[str, ...]) -> Estimator:
        if self._built is None or self._built[0] != names:
            self._built = names, _estimator(self._model, names, self._build)
        return self._built[1]


def separate_spectrogram(
    model: LaSAFT, spec: Tensor, targets: Sequence[str] | None = None
) -> Tensor:
    """Separate a whole track's spectrogram, window by window, for validation.

    Args:
        model: in whatever mode; it is run in eval mode.
        spec: complex-as-channels [2 * channel, frame, bin]; outside it the network sees zeros.
        targets: names of sources, or of sets of them (default: all sources).

    Returns:
        [target, 2 * channel, frame, bin], where ``spec`` is.
    """
    names = model.config.sources if targets is None else tuple(targets)
    grid = frame_grid(model.config)
    device = _device(model)
    batch_size = max(1, frames_at_once(model.config, device) // grid.window)
    with _evaluating(model), torch.no_grad():
        estimator = _estimator(model, names, specialise)

        def separate(windows: Tensor) -> Tensor:
            estimates = estimator(windows.to(device).transpose(-1, -2))
            inner = estimates[..., grid.trim : grid.trim + grid.length, :]
            return inner.transpose(-1, -2).to(spec.device)

        pieces = _separated([spec.transpose(-1, -2)], grid, batch_size, separate)
        return torch.cat(list(pieces), dim=-1).transpose(-1, -2)


def frames_at_once(config: ModelConfig, device: torch.device) -> int:
    """Return how many frames of a spectrogram go through the network's fast form together."""
    if device.type != "cuda":
        return _FRAMES_AT_ONCE
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    each = 4 * _MAPS_HELD * config.internal_channels * config.bins
    return min(_FRAMES_ON_GPU, free // 2 // each)


def _separated(
    blocks: Iterable[Tensor], grid: ChunkGrid, batch_size: int, separate: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """Cut a signal into windows, separate some at a time, and join the chunks.

    Args:
        blocks: the signal [..., sample] in pieces; samples may be frames.
        grid: of its chunks.
        batch_size: windows at once.
        separate: from windows [batch, ..., grid.window] to [batch, target, ..., grid.length].

    Yields:
        [target, ..., sample], together as long as the signal.
    """

    def pieces() -> Iterator[tuple[Chunk, Tensor]]:
        chunks = cut(blocks, grid)
        while group := tuple(islice(chunks, batch_size)):
            windows = torch.stack([chunk.window for chunk in group])
            yield from zip(group, separate(windows), strict=True)

    return overlap_add(pieces(), grid)


def _later(blocks: Iterable[Tensor], shift: int) -> Iterator[Tensor]:
    """Yield ``blocks`` [..., sample] behind ``shift`` samples of silence."""
    for number, block in enumerate(blocks):
        yield block if number else torch.nn.functional.pad(block, (shift, 0))


def _without_start(blocks: Iterable[Tensor], shift: int) -> Iterator[Tensor]:
    """Yield ``blocks`` [..., sample] without the first ``shift`` samples."""
    for block in blocks:
        rest = block[..., shift:]
        shift -= block.shape[-1] - rest.shape[-1]
        if rest.shape[-1]:
            yield rest


def _mean(passes: Sequence[Iterator[Tensor]]) -> Iterator[Tensor]:
    """Yield the mean of signals of one length that arrive in blocks of different sizes."""
    held = [next(one, None) for one in passes]
    while all(block is not None for block in held):
        blocks = [block for block in held if block is not None]
        count = min(block.shape[-1] for block in blocks)
        yield torch.stack([block[..., :count] for block in blocks]).mean(dim=0)
        held = [
            block[..., count:] if block.shape[-1] > count else next(one, None)
            for block, one in zip(blocks, passes, strict=True)
        ]


def _to_network(windows: Tensor, config: ModelConfig) -> Tensor:
    """[batch, channel, sample] -> the network's channels; for a mono network a batch of them."""
    if config.audio_channels == 1:
        return windows.reshape(-1, 1, windows.shape[-1])
    return windows.expand(-1, config.audio_channels, -1)


def _from_network(waves: Tensor, batch: int, channels: int) -> Tensor:
    """Undo :func:`_to_network`: [..., target, channel, sample] with the signal's ``channels``."""
    if waves.shape[2] == 1:
        return waves.unflatten(0, (batch, channels)).squeeze(3).transpose(1, 2)
    return waves.mean(dim=2, keepdim=True) if channels == 1 else waves


def _estimator(model: LaSAFT, names: Sequence[str], build: BuildEstimator) -> Estimator:
    """Return what estimates each target; the network runs once for each condition."""
    sources, device = model.config.sources, _device(model)
    sets = [members(name, sources) for name in names]
    if model.config.takes_sets:
        rows = torch.zeros(len(names), len(sources))
        for row, chosen in zip(rows, sets, strict=True):
            row[list(chosen)] = 1
        return build(model, rows.to(device))
    single = list(dict.fromkeys(chain.from_iterable(sets)))
    estimate = build(model, torch.tensor(single, device=device))
    if len(single) == len(names) and all(len(each) == 1 for each in sets):
        return estimate
    places = [[single.index(source) for source in chosen] for chosen in sets]

    def summed(mixture: Tensor) -> Tensor:
        found = estimate(mixture)
        return torch.stack([found[:, chosen].sum(dim=1) for chosen in places], dim=1)

    return summed


def _device(model: LaSAFT) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _evaluating(model: LaSAFT) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
