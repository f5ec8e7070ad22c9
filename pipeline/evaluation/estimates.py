"""Where estimates come from: a checkpoint, the mixture, ideal masks, or another system's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch

from lasaft.audio import AudioReader
from lasaft.checkpoint import build_model, load_checkpoint
from lasaft.errors import AudioError, StageError
from lasaft.files import publish_folder
from lasaft.separation.separator import Separator
from lasaft.targets import members
from pipeline.data.songs.tracks import TrackAudio

Waves = dict[str, np.ndarray]  # source -> float32 [channel, sample]
_MASK_N_FFT, _MASK_HOP = 4096, 1024
_SHOWN = 8  # files named in a message
_KEPT = {"wav": "FLOAT", "flac": "PCM_24", "mp3": "MPEG_LAYER_III"}


def mixture_estimates(audio: TrackAudio, sources: Sequence[str]) -> Waves:
    """Return the mixture [channel, sample] as each source's estimate: what doing nothing scores."""
    return dict.fromkeys(sources, audio.mixture.numpy())


def oracle_estimates(
    audio: TrackAudio, sources: Sequence[str], wanted: Sequence[str], kind: Literal["irm", "ibm"]
) -> Waves:
    """Return the mixture under ideal masks: a bound for systems that mask its spectrogram.

    ``irm``: a source's share of the summed powers of all sources, or that of a set's sources
    together; ``ibm``: 1 where that is more than half, else 0; per channel, on an STFT of 4096
    samples.

    Source: sigsep-mus-oracle, IRM2 and IBM2 of SiSEC 2018, with a longer window.

    Args:
        audio: of the track.
        sources: its sources.
        wanted: those of which estimates are wanted, and sets of them.
        kind: of the masks.
    """
    places = [members(name, sources) for name in wanted]
    pairs = zip(audio.mixture, audio.sources.unbind(1), strict=True)
    waves = torch.stack([_mask_channel(*pair, places, kind) for pair in pairs], dim=1)
    return dict(zip(wanted, waves.numpy(), strict=True))


def _mask_channel(
    mixture: torch.Tensor,
    references: torch.Tensor,
    wanted: Sequence[Sequence[int]],
    kind: Literal["irm", "ibm"],
) -> torch.Tensor:
    """Mask one channel: mixture [sample], references [source, sample], result [wanted, sample]."""
    window = torch.hann_window(_MASK_N_FFT)

    def stft(wave: torch.Tensor) -> torch.Tensor:
        return torch.stft(
            wave, _MASK_N_FFT, _MASK_HOP, window=window, return_complex=True, pad_mode="constant"
        )

    spectrum = stft(mixture)
    powers = [stft(wave).abs().square_() for wave in references]
    total = torch.zeros_like(powers[0])
    for power in powers:
        total += power
    total.clamp_min_(torch.finfo(torch.float32).tiny)
    result = references.new_empty(len(wanted), len(mixture))
    for index, (first, *others) in enumerate(wanted):
        share = sum((powers[other] for other in others), powers[first]) / total
        mask = share if kind == "irm" else (share > 0.5).float()
        result[index] = torch.istft(
            spectrum * mask, _MASK_N_FFT, _MASK_HOP, window=window, length=len(mixture)
        )
    return result


@dataclass(frozen=True)
class Network:
    """A trained network: its checkpoint's folder and hash when the run began."""

    checkpoint: Path
    hash: str
    overlap_ratio: float  # of separation chunks


def model_estimates(
    audio: TrackAudio, sources: Sequence[str], network: Network, separator: Any = None
) -> Waves:
    """Return the estimates [channel, sample] that ``network`` makes of all sources at once.

    With a ``separator``, an actor that holds it on a GPU, it does not run in this process.

    Raises:
        StageError: the checkpoint is no longer the one that the run began with.
    """
    if separator is None:
        return separate(network, audio.mixture.numpy(), audio.sample_rate, tuple(sources))
    import ray

    request = separator.separate.remote(audio.mixture.numpy(), audio.sample_rate, tuple(sources))
    return ray.get(request)


def separate(
    network: Network, mixture: np.ndarray, sample_rate: int, sources: tuple[str, ...]
) -> Waves:
    """Return the estimate [channel, sample] of each source, on the GPU that this process sees."""
    stems = _separator(network).separate(torch.from_numpy(mixture), sample_rate, sources)
    return {source: stem.numpy() for source, stem in stems.items()}


def device_here() -> str:
    """Return where a network runs in this process: CUDA only where torch can use it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=1)  # a worker process separates many tracks with one network
def _separator(network: Network) -> Separator:
    checkpoint = load_checkpoint(network.checkpoint)
    if checkpoint.hash != network.hash:
        raise StageError(
            f"{network.checkpoint}: the checkpoint changed during the evaluation; evaluate again"
        )
    model = build_model(checkpoint, device_here())
    return Separator(model, overlap_ratio=network.overlap_ratio)


def read_estimates(
    folder: Path, sources: Sequence[str], audio: TrackAudio, welcome: Sequence[str] = ()
) -> Waves:
    """Read another system's estimates [channel, sample] of one track.

    All may be shorter or longer than the track, alike: scoring pads with silence or cuts them, as
    museval does.

    Args:
        folder: of the track, with ``<source>.wav`` (or flac, mp3).
        sources: which must be there.
        audio: of the track.
        welcome: read too where there is a file.

    Raises:
        AudioError: a source is missing, there twice, unreadable, not finite, of another rate or
            channels, or not as long as the others.
    """
    waves: Waves = {}
    for source in dict.fromkeys((*sources, *welcome)):
        found = [file for kind in _KEPT if (file := folder / f"{source}.{kind}").is_file()]
        if not found and source not in sources:
            continue
        if not found:
            there = ", ".join(sorted(file.name for file in folder.glob("*.*"))[:_SHOWN])
            raise AudioError(
                f"{folder}: no estimate of {source}, found: {there or 'nothing'}; allowed: "
                f"{source}.wav"
            )
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise AudioError(f"{folder}: several estimates of {source}: {names}; allowed: one")
        path = found[0]
        waves[source] = _read_estimate(path, audio)
        first = next(iter(waves))
        if waves[source].shape != waves[first].shape:
            raise AudioError(
                f"{path}: {waves[source].shape[1]} samples, but the estimate of {first} has "
                f"{waves[first].shape[1]}; allowed: all of the same length"
            )
    return waves


def _read_estimate(path: Path, audio: TrackAudio) -> np.ndarray:
    channels = audio.mixture.shape[0]
    with AudioReader(path) as reader:
        if reader.sample_rate != audio.sample_rate:
            raise AudioError(
                f"{path}: {reader.sample_rate} Hz; allowed: the track's {audio.sample_rate} Hz"
            )
        if reader.channels != channels:
            raise AudioError(f"{path}: {reader.channels} channels; allowed: the track's {channels}")
        if reader.missing_bytes:
            raise AudioError(f"{path}: {reader.note}; allowed: whole files")
        return reader.whole()


def keep_estimates(folder: Path, waves: Mapping[str, np.ndarray], rate: int, kind: str) -> None:
    """Write the estimates of one track to ``folder/<source>.<kind>``, all or none.

    wav keeps the float32 samples that were scored; flac has 24 bits and clips; mp3 is lossy.

    Raises:
        AudioError: the format cannot hold this sample rate.
    """
    with publish_folder(folder) as fresh:
        for source, wave in waves.items():
            samples = wave.T if kind == "wav" else np.clip(wave.T, -1, 1)
            path = fresh / f"{source}.{kind}"
            try:
                soundfile.write(path, samples, rate, subtype=_KEPT[kind])
            except soundfile.LibsndfileError as error:
                message = f"{folder / path.name}: cannot write at {rate} Hz: {error}"
                raise AudioError(message) from error
