"""BSS Eval on a device against the NumPy form: ``python -m benchmarks.gpu --parts scoring``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.signal import lfilter

from benchmarks.bounded import Row
from benchmarks.measure import timed
from lasaft.metrics import METRICS, bss_eval, bss_eval_tracks

RATE = 44100
_SOURCES = 4
_MOST_DB = 1e-9


def signals(seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Return references and estimates [source, channel, sample]: coloured, correlated, leaking."""
    random = np.random.default_rng(0)
    shape = (2, int(seconds * RATE))
    references = np.empty((_SOURCES, *shape))
    common = random.standard_normal(shape[1])
    for index in range(_SOURCES):
        noise = random.standard_normal(shape) + 0.5 * common
        references[index] = 0.1 / (1 + index) * np.asarray(lfilter([1.0], [1.0, -0.9], noise))
    estimates = np.empty_like(references)
    for index in range(_SOURCES):
        estimates[index] = 0.9 * references[index] + 0.1 * references[index - 1]
        estimates[index] += 0.01 * random.standard_normal(shape)
    return references, estimates


def scoring(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Time one long track, and short ones of two mono sources together and one by one."""
    references, estimates = (x.astype(np.float32) for x in signals(1.0 if tiny else 240.0))
    yield _against_numpy(device, [(references, estimates)])
    size = RATE // 4 if tiny else 12 * RATE
    starts = range(0, references.shape[-1] - size + 1, size)
    short = [
        (references[:2, :1, at : at + size], estimates[:2, :1, at : at + size]) for at in starts
    ]
    yield _against_numpy(device, short)
    apart = timed(lambda: [bss_eval(*track, device=device) for track in short])["wall"]
    together = timed(lambda: bss_eval_tracks(short, device=device))["wall"]
    yield f"those {len(short)} together against one by one", f"{apart / together:.2f}x", ""


def _against_numpy(device: torch.device, tracks: list) -> Row:
    bss_eval_tracks(tracks[:1], device=device)
    found = {}
    times = {}
    for where in (None, device):
        times[where] = timed(
            lambda at=where: found.update({at: bss_eval_tracks(tracks, device=at)})
        )
    gap = max(
        float(np.abs(ours.metric(name) - plain.metric(name)).max())
        for ours, plain in zip(found[device], found[None], strict=True)
        for name in METRICS
    )
    assert gap < _MOST_DB, f"scores differ by {gap:.1e} dB, allowed: below {_MOST_DB:.0e}"
    sources, channels, samples = tracks[0][0].shape
    spent, plain = times[device]["wall"], times[None]["wall"]
    memory = ""
    if device.type == "cuda":
        memory = f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB"
    return (
        f"BSS Eval of {len(tracks)} x {samples / RATE:g} s, {sources} sources, {channels} channels",
        f"{spent:.2f} s, {plain / spent:.1f} times as fast as NumPy{memory}, {gap:.0e} dB apart",
        f"< {_MOST_DB:.0e} dB apart",
    )
