"""BSS Eval version 4 and 3 (images): SDR, ISR, SIR and SAR, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lasaft.errors import AudioError
from lasaft.metrics.correlations import correlations
from lasaft.metrics.energies import Energies, Filters, stretch_energies, window_energies
from lasaft.metrics.filters import projection_filters
from lasaft.metrics.frames import Frames, frame_energies, ratio_db
from lasaft.metrics.signals import Array, Signals, against_rest, as_signals
from lasaft.metrics.spectra import WindowSpectra

if TYPE_CHECKING:
    import torch

METRICS = ("SDR", "ISR", "SIR", "SAR")
_KEEP_BYTES = 344 << 20  # spectra kept between the readings of a track: up to one minute
_LONGEST_TRANSFORM = 1 << 18  # longer windows are filtered a stretch at a time
_MOST_REFERENCES = 16  # up to here the correlation of whole windows is cheap in memory


@dataclass(frozen=True)
class Scores:
    """Scores in dB of one track, each [source, frame] float64; NaN where a frame has none.

    Attributes:
        sdr: source-to-distortion ratio.
        isr: source image-to-spatial distortion ratio.
        sir: source-to-interference ratio.
        sar: sources-to-artifacts ratio.
        window_seconds: length of a frame.
        hop_seconds: time from a frame to the next.
    """

    sdr: Array
    isr: Array
    sir: Array
    sar: Array
    window_seconds: float = 1.0
    hop_seconds: float = 1.0

    def metric(self, name: str) -> Array:
        """Return the scores [source, frame] of ``name``, one of SDR, ISR, SIR, SAR."""
        if name not in METRICS:
            raise AudioError(f"metric {name!r}; known: {', '.join(METRICS)}")
        return getattr(self, name.lower())

    def median(self, name: str = "SDR") -> Array:
        """Return the median over frames [source], NaN and infinite frames left out (museval)."""
        return _over_frames(np.median, self.metric(name))

    def mean(self, name: str = "SDR") -> Array:
        """Return the mean over frames [source], NaN and infinite frames left out."""
        return _over_frames(np.mean, self.metric(name))

    def missing(self, name: str = "SDR") -> Array:
        """Return how many frames [source] have no finite score."""
        return np.sum(~np.isfinite(self.metric(name)), axis=1)


def _over_frames(average: Any, scores: Array) -> Array:
    finite = [row[np.isfinite(row)] for row in scores]
    return np.array([average(row) if len(row) else np.nan for row in finite])


def bss_eval(
    references: Any,
    estimates: Any,
    *,
    sample_rate: float = 44100,
    window_seconds: float = 1.0,
    hop_seconds: float = 1.0,
    mode: Literal["v4", "v3"] = "v4",
    filter_taps: int = 512,
    accompaniment_of: int | None = None,
    device: str | torch.device | None = None,
) -> Scores:
    """Score estimates as museval does: BSS Eval images, without permutation.

    With s a reference, e its estimate, q = projection of e on s delayed by 0 to taps - 1 samples
    and p = projection of e on all references so delayed, summed over samples and channels:
    SDR = |s|^2 / |e - s|^2, ISR = |s|^2 / |q - s|^2, SIR = |q|^2 / |p - q|^2,
    SAR = |p|^2 / |e - p|^2, each as 10 log10; infinite where the denominator is 0.
    In ``v4`` the filters of the projections are those of the whole track, in ``v3`` each frame
    has its own. A frame is NaN for all sources if any reference or estimate is silent in it. NaN
    or infinity in an estimate makes that source NaN in every frame, in a reference everything but
    the other sources' ISR.

    Args:
        references: [source, channel, sample], 1 to 100 sources; array, tensor or a sequence.
        estimates: the same sources; longer ones are cut, shorter ones end in silence.
        sample_rate: in Hz.
        window_seconds: length of a frame; infinity or more than the track: one frame.
        hop_seconds: time from a frame to the next.
        mode: ``v4`` or ``v3``.
        filter_taps: length of the filters in samples.
        accompaniment_of: index of a source whose scenario is "it against the sum of all others",
            as museval scores vocals where an accompaniment is given. That source's row then comes
            from this pair and a last row is added for the accompaniment.
        device: ``cpu``, ``cuda`` or ``cuda:N`` for the form in torch, made for GPUs; None: the one
            in NumPy, the faster on a CPU. Their scores differ by rounding.

    Returns:
        Scores; memory beside the signals does not grow with their length.

    Raises:
        AudioError: shapes that do not fit, or a reference or an estimate silent throughout.
        ConfigError: no such device here.

    Source:
        Vincent, Gribonval, Fevotte 2006; Stoeter, Liutkus, Ito 2018 (SiSEC); museval 0.4.1.
    """
    return bss_eval_tracks(
        [(references, estimates)], sample_rate=sample_rate, window_seconds=window_seconds,
        hop_seconds=hop_seconds, mode=mode, filter_taps=filter_taps,
        accompaniment_of=accompaniment_of, device=device,
    )[0]  # fmt: skip


def bss_eval_tracks(
    tracks: Sequence[tuple[Any, Any]],
    *,
    sample_rate: float = 44100,
    window_seconds: float = 1.0,
    hop_seconds: float = 1.0,
    mode: Literal["v4", "v3"] = "v4",
    filter_taps: int = 512,
    accompaniment_of: int | None = None,
    device: str | torch.device | None = None,
) -> list[Scores]:
    """Score several tracks: (references, estimates) of each, all else as in :func:`bss_eval`.

    On a ``device`` the filters of all tracks are found together, which pays where they are small:
    few sources, short filters.
    """
    if mode not in ("v4", "v3"):
        raise AudioError(f"mode {mode!r}; allowed: 'v4', 'v3'")
    if filter_taps < 1:
        raise AudioError(f"filter_taps {filter_taps}; at least 1 is needed")
    contests = [c for track in tracks for c in _contests(*track, accompaniment_of)]
    frames = [
        Frames.of_seconds(sample_rate, window_seconds, hop_seconds, signals.samples)
        for signals in contests
    ]
    with np.errstate(invalid="ignore"):  # NaN and infinity in the signals have their rules
        pairs = list(zip(contests, frames, strict=True))
        tables = _score(pairs, mode, filter_taps, device)
    if accompaniment_of is not None:
        tables = [
            _with_pair(table, pair, accompaniment_of)
            for table, pair in zip(tables[::2], tables[1::2], strict=True)
        ]
    return [Scores(*t, window_seconds=window_seconds, hop_seconds=hop_seconds) for t in tables]


def _contests(references: Any, estimates: Any, accompaniment_of: int | None) -> list[Signals]:
    """Return a track's signals, and the pair of a source and its accompaniment if asked for."""
    signals = as_signals(references, estimates)
    if accompaniment_of is None:
        return [signals]
    if signals.sources < 2:
        raise AudioError("accompaniment_of needs other sources; there is only one")
    if accompaniment_of not in range(signals.sources):
        raise AudioError(
            f"accompaniment_of {accompaniment_of}; allowed: 0 to {signals.sources - 1}"
        )
    return [signals, against_rest(signals, accompaniment_of)]


def _with_pair(table: Array, pair: Array, source: int) -> Array:
    """Put the scores of a source against its accompaniment [4, 2, frame] in their places."""
    table[:, source] = pair[:, 0]
    return np.concatenate([table, pair[:, 1:]], axis=1)


def _score(
    tracks: Sequence[tuple[Signals, Frames]],
    mode: str,
    taps: int,
    device: str | torch.device | None,
) -> list[Array]:
    """Return [SDR, ISR, SIR, SAR] of each track as one array [4, source, frame]."""
    tables = [np.full((4, signals.sources, f.count), np.nan) for signals, f in tracks]
    parts, places = list(tracks), list(tables)
    if mode == "v3":
        parts, places = [], []
        for (signals, frames), table in zip(tracks, tables, strict=True):
            for index in range(frames.count):
                part = signals.part(*frames.span(index))
                if not part.any_silent(0, part.samples):
                    parts.append((part, Frames(part.samples, part.samples, 1)))
                    places.append(table[..., index : index + 1])
    if device is None:
        found = (_score_part(*part, taps) for part in parts)
    else:
        found = _score_on_device(parts, taps, device)
    for place, scores in zip(places, found, strict=True):
        place[:] = scores
    return tables


def _score_part(signals: Signals, frames: Frames, taps: int) -> Array:
    """Score frames that share their filters."""
    windows = WindowSpectra(signals, 0, frames.window, frames.hop, frames.count, taps)
    whole = windows.n_fft <= _LONGEST_TRANSFORM
    end_to_end = frames.hop == frames.window and frames.window >= 8 * taps
    share = whole and end_to_end and signals.references <= _MOST_REFERENCES
    # All or none: what is kept takes new memory, whose first touch costs more than its transforms.
    windows.keep_bytes = _KEEP_BYTES * (share and windows.n_bytes <= _KEEP_BYTES)
    filters = _filters(signals, taps, windows if share else None)
    if filters.broken.any():
        kept = signals.without(filters.broken)
        windows = WindowSpectra(kept, 0, frames.window, frames.hop, frames.count, taps)
    measure = window_energies if whole else _stretch_by_stretch
    energies = measure(windows, filters)
    return _table(filters, energies, frame_energies(signals, frames))


def _score_on_device(
    parts: Sequence[tuple[Signals, Frames]], taps: int, device: str | torch.device
) -> Iterator[Array]:
    """Yield what :func:`_score_part` returns for each of the parts."""
    from lasaft.metrics.dense import measure_parts

    measured = measure_parts(parts, taps, _LONGEST_TRANSFORM, device)
    for (signals, frames), found in zip(parts, measured, strict=True):
        energies, plain = found.energies, found.plain
        if energies is None or plain is None:
            kept = signals.without(found.filters.broken)
            windows = WindowSpectra(kept, 0, frames.window, frames.hop, frames.count, taps)
            energies = _stretch_by_stretch(windows, found.filters)
            plain = frame_energies(signals, frames)
        yield _table(found.filters, energies, plain)


def _table(filters: Filters, energies: Energies, plain: tuple[Array, Array, Array]) -> Array:
    """Return the scores [4, source, frame] of frames that share their filters."""
    true, error, silent = plain
    unusable = np.isnan(filters.joint).any(axis=(1, 2))
    error[unusable.reshape(len(true), -1).any(axis=1)] = np.nan
    table = np.stack(
        [
            ratio_db(true, error),
            ratio_db(true, energies.spatial),
            ratio_db(energies.own, energies.interference),
            ratio_db(energies.joint, energies.artifacts),
        ]
    )
    table[..., silent] = np.nan
    return table


def _filters(signals: Signals, taps: int, windows: WindowSpectra | None) -> Filters:
    count, channels = signals.references, signals.channels
    lags = correlations(signals, taps, windows)
    among, cross = lags[:, :count], lags[:, count:]
    own = []
    for source in range(signals.sources):
        rows = slice(source * channels, (source + 1) * channels)
        own.append(projection_filters(among[rows, rows], cross[rows, rows]))
    joint = own[0] if signals.sources == 1 else projection_filters(among, cross)
    broken = ~np.isfinite(np.einsum("aak->ak", among)).all(axis=1)
    return Filters(joint, np.array(own), broken)


def _stretch_by_stretch(windows: WindowSpectra, filters: Filters) -> Energies:
    """Return the energies of windows that are too long to be transformed whole."""
    starts = range(0, windows.count * windows.hop, windows.hop)
    parts = [windows.signals.part(start, start + windows.length) for start in starts]
    return Energies.side_by_side([stretch_energies(part, filters) for part in parts])
