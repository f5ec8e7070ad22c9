"""The files of one song as MUSDB18 has them: wav stems, and musdb's set-up file."""

from __future__ import annotations

import os
import wave
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lasaft.config import MUSDB18_SOURCES

if TYPE_CHECKING:
    from pipeline.data.synthetic.song import Song

STREAMS = ("mixture", "drums", "bass", "other", "vocals")  # the order within a .stem.mp4
_HEADER_BYTES = 44
_CHANNELS, _BYTES = 2, 2


def wav_bytes(samples: int) -> int:
    """Return the size of a whole stereo 16-bit wav file of ``samples``."""
    return _HEADER_BYTES + _CHANNELS * _BYTES * samples


def write_wavs(folder: Path, movements: Iterable[Song]) -> None:
    """Write mixture.wav and the stems to ``folder``, one movement of the song after the other.

    Raises:
        OSError: as the disk says.
    """
    with ExitStack() as stack:
        files: dict[str, wave.Wave_write] = {}
        for part in movements:
            for stream, samples in {"mixture": part.mixture, **part.sources}.items():
                if stream not in files:
                    path = os.fspath(folder / f"{stream}.wav")
                    files[stream] = stack.enter_context(wave.open(path, "wb"))
                    files[stream].setparams((_CHANNELS, _BYTES, part.sample_rate, 0, "NONE", ""))
                pcm = np.rint(samples.T * np.float32(32768)).astype("<i2")
                files[stream].writeframes(pcm.tobytes())


def musdb_setup(sample_rate: int, validation: list[str]) -> dict[str, Any]:
    """Return the content of ``mus.yaml``, which ``musdb.DB(setup_file=...)`` reads."""
    others = [source for source in MUSDB18_SOURCES if source != "vocals"]
    return {
        "sample_rate": float(sample_rate),
        "sources": {source: f"{source}.wav" for source in MUSDB18_SOURCES},
        "mixture": "mixture.wav",
        "stem_ids": {stream: number for number, stream in enumerate(STREAMS)},
        "targets": {
            **{source: {source: 1} for source in MUSDB18_SOURCES},
            "accompaniment": dict.fromkeys(others, 1),
            "linear_mixture": dict.fromkeys(MUSDB18_SOURCES, 1),
        },
        "validation_tracks": validation,
    }
