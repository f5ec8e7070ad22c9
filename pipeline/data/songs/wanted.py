"""What is asked of songs: which sources, found how, in what form, and what may be done for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from lasaft.config import ModelConfig
from pipeline.config import DataConfig
from pipeline.config.data import Layout


@dataclass(frozen=True)
class Wanted:
    """The songs that are asked for; all that reads songs reads them as one of these says."""

    sources: tuple[str, ...]  # their names, in the order of their condition numbers
    sample_rate: int = 44100  # in Hz
    channels: int = 2
    is_wav: bool | None = None  # folders of stems, or .stem.mp4 (None: look)
    layout: Layout | None = None  # None: look
    dev_mode: bool = False  # the first song of each split alone
    resample: bool = False  # files of other rates are resampled
    missing_stems: Literal["silence", "skip"] | None = None  # None: a missing stem is a fault
    length_tolerance: float = 0.05  # seconds by which the lengths in a song may differ

    @classmethod
    def of(cls, model: ModelConfig, data: DataConfig) -> Self:
        """Return what a network and the options of the data ask for."""
        return cls(
            model.sources,
            model.sample_rate,
            model.audio_channels,
            is_wav=data.musdb_is_wav,
            layout=data.layout,
            dev_mode=data.dev_mode,
            resample=data.resample,
            missing_stems=data.missing_stems,
            length_tolerance=data.length_tolerance,
        )
