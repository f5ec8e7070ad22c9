"""What the separator takes: waveforms, checked as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from lasaft.audio import Samples, check_finite
from lasaft.errors import AudioError

# More channels than this in an array means that its axes are the wrong way round.
_MOST_CHANNELS = 64
_RATES_HZ = (1000, 768000)


class CheckedBlocks:
    """The blocks of a signal, checked and counted on their way."""

    def __init__(
        self, blocks: Iterable[Samples], sample_rate: int, wanted: int, name: object
    ) -> None:
        if not _RATES_HZ[0] <= sample_rate <= _RATES_HZ[1]:
            raise AudioError(
                f"{name}: has a sample rate of {sample_rate} Hz, allowed: from {_RATES_HZ[0]} to "
                f"{_RATES_HZ[1]}"
            )
        self._blocks, self._rate, self._wanted, self._name = blocks, sample_rate, wanted, name
        self.samples = self.channels = 0

    def __iter__(self) -> Iterator[Samples]:
        for block in self._blocks:
            self._check(block)
            self.samples += block.shape[1]
            yield block
        if self.samples == 0:
            raise AudioError(f"{self._name}: holds no audio (0 samples)")

    def _check(self, block: Samples) -> None:
        channels = len(block)
        if self.channels not in (0, channels):
            raise AudioError(f"{self._name}: goes from {self.channels} to {channels} channels")
        # A mono network separates any number of channels, each by itself.
        if channels != 1 and self._wanted not in (1, channels):
            raise AudioError(
                f"{self._name}: has {channels} channels, allowed: 1 or {self._wanted}, because "
                f"the network was made for {self._wanted}"
            )
        self.channels = channels
        check_finite(block, self._name, self.samples, self._rate)


def as_waveform(waveform: Tensor | np.ndarray) -> Samples:
    """Return ``waveform`` as float32 [channel, sample], or say what is wrong with it."""
    array = waveform.detach().cpu() if isinstance(waveform, Tensor) else np.asarray(waveform)
    if isinstance(array, Tensor):
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.dtype.kind != "f":
        raise AudioError(
            f"the waveform holds {array.dtype} values, allowed: floats with full scale ±1 "
            "(divide int16 by 32768)"
        )
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or len(array) > _MOST_CHANNELS:
        raise AudioError(
            f"the waveform has the shape {tuple(array.shape)}, allowed: [channel, sample]"
        )
    if array.size == 0:
        raise AudioError("the waveform holds no audio (0 samples)")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        return array.astype(np.float32, copy=False)
