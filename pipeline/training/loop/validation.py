"""Validation: whole tracks, in a fixed order, with the configured loss and the exact frame SDR."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lasaft.network.model import LaSAFT
from lasaft.separation.separator import separate_spectrogram
from pipeline.data.windows.loader import ValidationTrack
from pipeline.training.loop.loss_network import LossFunction
from pipeline.training.loop.ranks import Ranks

# Several targets at once share the windows; this bounds what their spectrograms take.
_MOST_BYTES = 2**29

Listener = Callable[[str, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Validation:
    """The result over all tracks: the mean loss, and each source's SDR in dB.

    The loss is that of the stitched spectrogram of a whole track, a mean over tracks and
    targets. The SDR is museval's of 1 s frames: the median over frames, then over tracks.
    """

    loss: float
    sdr: dict[str, float]
    tracks: int


def validate(
    model: LaSAFT,
    loss: LossFunction,
    tracks: Iterator[tuple[int, ValidationTrack]],
    targets: Sequence[str],
    ranks: Ranks,
    *,
    listen: Listener | None = None,
) -> Validation:
    """Separate ``tracks`` and compare; every process returns the same, whatever their number.

    Args:
        model: the network; it is put into eval mode and back into its own.
        tracks: this process's share: (place in the list of all tracks, track).
        targets: names of the sources to separate.
        ranks: the processes that share the tracks.
        listen: gets the audio of the first track's targets: (target, truth, estimate), each
            [channel, sample] on the CPU; called on the first process alone.
    """
    ranks.share_buffers(model)
    training = model.training
    model.eval()
    with torch.inference_mode():
        mine = {
            place: _score(model, loss, track, targets, ranks, listen=None if place else listen)
            for place, track in tracks
        }
    model.train(training)
    scored = {place: row for part in ranks.gather(mine) for place, row in part.items()}
    # In the order of the tracks: a sum in another order would differ in the last bit.
    rows = np.array([scored[place] for place in sorted(scored)], dtype=np.float64)
    if not len(rows):
        return Validation(math.nan, {}, 0)
    sdr = {name: _median(rows[:, 1, column]) for column, name in enumerate(targets)}
    return Validation(float(rows[:, 0].mean()), sdr, len(rows))


def _score(
    model: LaSAFT,
    loss: LossFunction,
    track: ValidationTrack,
    targets: Sequence[str],
    ranks: Ranks,
    *,
    listen: Listener | None,
) -> list[list[float]]:
    """Return [loss of each target, SDR of each target]."""
    mixture = track.mixture.to(ranks.device)
    together = max(1, _MOST_BYTES // (mixture.numel() * mixture.element_size()))
    losses, scores = [], []
    for first in range(0, len(targets), together):
        group = targets[first : first + together]
        for target, spec in zip(group, separate_spectrogram(model, mixture, group), strict=True):
            truth = track.sources[model.config.sources.index(target)].to(ranks.device)[None]
            estimate = spec[None]
            domain = _network_domain(model, estimate, mixture[None])
            losses.append(float(loss(domain, truth, mixture[None])))
            waves = [model.spectrogram.istft(each, track.samples)[0] for each in (truth, estimate)]
            scores.append(_frame_median(waves[0], waves[1], model.config.sample_rate))
            if listen is not None:
                listen(target, *(wave.cpu() for wave in waves))
    return [losses, scores]


def _network_domain(model: LaSAFT, estimate: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    """Undo ``to_spectrogram``: the losses take an estimate as the network gave it.

    A magnitude may come out negative, so it is the part along the mixture's phase.
    """
    if model.config.spec_type == "complex":
        return estimate
    planes = model.spectrogram.with_phase(torch.ones_like(estimate[:, ::2]), mixture)
    real, imag = (estimate * planes).chunk(2, dim=1)
    return real + imag


def _frame_median(reference: torch.Tensor, estimate: torch.Tensor, rate: int) -> float:
    """Return the median over 1 s frames of the SDR of one source [channel, sample], in dB.

    Frames where the source or its estimate is silent have none; silence throughout gives NaN.
    """
    # It brings SciPy, for which the first step would have to wait.
    from lasaft.metrics import frame_sdr

    if not (reference.any() and estimate.any()):
        return math.nan
    frames = frame_sdr(reference[None], estimate[None], sample_rate=rate)
    return _median(np.asarray(frames, dtype=np.float64))


def _median(values: np.ndarray) -> float:
    """Return the median of what is not NaN, NaN if nothing is left."""
    values = values[~np.isnan(values)]
    return float(np.median(values)) if values.size else math.nan
