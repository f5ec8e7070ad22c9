"""Metrics of a whole signal without filters, as papers beside museval quote them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lasaft.errors import AudioError
from lasaft.metrics.frames import ratio_db
from lasaft.metrics.signals import Array

_MDX_DELTA = 1e-7  # of the MDX 2021 challenge; the other convention in use is 1e-8
_BLOCK = 1 << 14  # samples at a time: both signals in float64 stay in a second-level cache


def usdr(references: Any, estimates: Any, *, delta: float = _MDX_DELTA) -> Array:
    """Return the SDR of the MDX challenges (uSDR) in dB, one number for each whole source.

    10 log10((sum s^2 + delta) / (sum (s - e)^2 + delta)), sums over channels and samples.
    The same as MDX21's and Demucs' nSDR. A silent reference has a score too: 0 dB where the
    estimate is silent as well.

    Args:
        references: [source, channel, sample], scaled to full scale = 1.
        estimates: of the same shape.
        delta: keeps the score finite; 1e-7 in MDX, Demucs and mdx-net, 1e-8 in some toolkits.

    Returns:
        [source] float64.

    Raises:
        AudioError: shapes that differ.

    Source:
        Mitsufuji et al., Music Demixing Challenge 2021.
    """
    true, ours = same_shape(references, estimates)
    sums = np.zeros((2, len(true)))
    for index, (reference, estimate) in enumerate(zip(true, ours, strict=True)):
        for s, e in _blocks(reference, estimate):
            sums[:, index] += _energy(s), _energy(s - e)
    power, error = sums
    return ratio_db(power + delta, error + delta)


nsdr = usdr  # one quantity, two names: MDX says uSDR, Demucs nSDR


def si_sdr(references: Any, estimates: Any, *, zero_mean: bool = False) -> Array:
    """Return the scale-invariant SDR in dB, one number for each whole source.

    10 log10(|a s|^2 / |a s - e|^2) with a = <e, s> / |s|^2, sums over channels and samples.
    Infinite where e is a multiple of s, minus infinity where they are orthogonal, NaN where the
    reference is silent.

    Args:
        references: [source, channel, sample].
        estimates: of the same shape.
        zero_mean: take the mean of each channel away first.

    Returns:
        [source] float64.

    Raises:
        AudioError: shapes that differ.

    Source:
        Le Roux, Wisdom, Erdogan, Hershey: SDR, half-baked or well done? 2019.
    """
    true, ours = same_shape(references, estimates)
    sums = np.zeros((2, len(true)))
    for index, (reference, estimate) in enumerate(zip(true, ours, strict=True)):
        means = (_mean(reference), _mean(estimate)) if zero_mean else (0.0, 0.0)
        power, product = 0.0, 0.0
        for s, e in _blocks(reference, estimate, *means):
            power += _energy(s)
            product += float(np.vdot(e, s))
        scale = product / power if power else np.nan
        for s, e in _blocks(reference, estimate, *means):
            target = scale * s
            sums[:, index] += _energy(target), _energy(target - e)
    return ratio_db(*sums)


def si_sar(references: Any, estimates: Any) -> Array:
    """Return the scale-invariant signal-to-artifacts ratio in dB, one number for each source.

    10 log10(|a s|^2 / |e - p|^2) with a s as in :func:`si_sdr` and p the sum of all references,
    each with a gain of its own, that is closest to e: what is left is of no source. Filters of BSS
    Eval with one tap, alike for all channels. Of the listeners in Jaffe and Burgoyne's "Bake-Off"
    (2025) it tells more about drums and bass than SDR does.

    Args:
        references: [source, channel, sample], all sources of the mixture.
        estimates: of the same shape.

    Returns:
        [source] float64.

    Raises:
        AudioError: shapes that differ.

    Source:
        Le Roux, Wisdom, Erdogan, Hershey: SDR, half-baked or well done? 2019.
    """
    true, ours = same_shape(references, estimates)
    count = len(true)
    products = np.zeros((2 * count, count))
    for block in _joint_blocks(true, ours):
        products += block @ block[:count].T
    among, cross = products[:count], products[count:]
    gains = np.linalg.lstsq(among, cross.T)[0].T  # [estimate, reference]
    left = np.zeros(count)
    for block in _joint_blocks(true, ours):
        left += np.square(block[count:] - gains @ block[:count]).sum(axis=1)
    power = among.diagonal()
    target = np.divide(cross.diagonal() ** 2, power, out=np.full(count, np.nan), where=power > 0)
    return ratio_db(target, left)


def _joint_blocks(true: list[Array], ours: list[Array]) -> Iterator[Array]:
    """Yield references and estimates [signal, sample] in float64, channel after channel."""
    for channel in range(len(true[0])):
        for begin in range(0, true[0].shape[1], _BLOCK):
            part = slice(begin, begin + _BLOCK)
            yield np.stack([wave[channel, part] for wave in (*true, *ours)]).astype(np.float64)


def _blocks(
    reference: Array, estimate: Array, true_mean: Any = 0.0, our_mean: Any = 0.0
) -> Iterator[tuple[Array, Array]]:
    """Yield both signals in float64, a block of samples at a time, less their means."""
    for begin in range(0, reference.shape[1], _BLOCK):
        part = slice(begin, begin + _BLOCK)
        s, e = (signal[:, part].astype(np.float64) for signal in (reference, estimate))
        yield s - true_mean, e - our_mean


def _mean(signal: Array) -> Array:
    return signal.mean(axis=1, keepdims=True, dtype=np.float64)


def _energy(signal: Array) -> float:
    return float(np.vdot(signal, signal))


def same_shape(references: Any, estimates: Any) -> tuple[list[Array], list[Array]]:
    """Return both as arrays [channel, sample] of each source.

    Raises:
        AudioError: they are no such arrays, or differ in shape.
    """
    arrays: list[list[Array]] = []
    for name, sources in (("references", references), ("estimates", estimates)):
        arrays.append([])
        for index, source in enumerate(sources):
            array = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
            if array.ndim != 2 or array.dtype.kind not in "fiu":
                raise AudioError(
                    f"{name}[{index}]: shape {array.shape}, dtype {array.dtype}; "
                    "each source must be real numbers [channel, sample]"
                )
            arrays[-1].append(array)
    true, ours = arrays
    if [a.shape for a in true] != [a.shape for a in ours] or not true:
        raise AudioError(
            f"references {[a.shape for a in true]} and estimates {[a.shape for a in ours]} "
            "differ in shape; the same sources of the same length are needed"
        )
    return true, ours
