"""museval as the truth of BSS Eval, and signals that make its filters work for their numbers."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from lasaft.metrics import METRICS, Scores

RATE = 8000  # of the synthetic signals: museval's time goes into the filters, not the samples


@cache
def museval_metrics() -> ModuleType:
    """Return museval's metrics module, loaded alone: its package asks for ffmpeg on import."""
    package = importlib.util.find_spec("museval")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = f"{package.submodule_search_locations[0]}/metrics.py"
    spec = importlib.util.spec_from_file_location("museval_metrics_alone", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def museval_package(name: str = "museval") -> ModuleType:
    """Import museval whole, or skip the test where there is no ffmpeg."""
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        pytest.skip(f"museval cannot be imported: {error}")


@contextmanager
def linalg_errors_found() -> Iterator[None]:
    """Give NumPy back the name under which museval looks for LinAlgError.

    ``np.linalg.linalg`` left NumPy, so an exactly singular matrix raised AttributeError instead
    of taking museval's least-squares fallback. No number changes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.linalg, "linalg", np.linalg, raising=False)
        yield


def museval_table(
    references: np.ndarray,
    estimates: np.ndarray,
    *,
    window: float = RATE,
    hop: float = RATE,
    mode: str = "v4",
    taps: int = 512,
) -> np.ndarray:
    """Return museval's SDR, ISR, SIR, SAR [4, source, frame] of [source, channel, sample]."""
    with linalg_errors_found(), np.errstate(all="ignore"):
        scores = museval_metrics().bss_eval(
            references.transpose(0, 2, 1),
            estimates.transpose(0, 2, 1),
            window=window,
            hop=hop,
            filters_len=taps,
            framewise_filters=mode == "v3",
        )
    return np.stack(scores[:4])


def table(scores: Scores) -> np.ndarray:
    """Return scores as [4, source, frame] in the order SDR, ISR, SIR, SAR."""
    return np.stack([scores.metric(name) for name in METRICS])


def differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the largest difference of each metric in dB; NaN and inf must coincide."""
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    infinite = np.isinf(theirs)
    np.testing.assert_array_equal(ours[infinite], theirs[infinite])
    np.testing.assert_array_equal(np.isinf(ours), infinite)
    gaps = np.abs(np.where(np.isfinite(theirs), ours, 0) - np.where(np.isfinite(theirs), theirs, 0))
    return gaps.reshape(len(gaps), -1).max(axis=1)


def coloured(
    seconds: float, sources: int = 3, channels: int = 2, seed: int = 0, rate: int = RATE
) -> np.ndarray:
    """Return sources with a steep spectrum, unequal levels and a part in common."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((sources, channels, int(seconds * rate)))
    audio = np.asarray(lfilter([1.0], [1.0, -0.9], noise, axis=-1))
    audio = 0.7 * audio + 0.3 * audio[:1, :1]
    levels = 0.1 * 3.0 ** -np.arange(sources)
    return audio * levels[:, None, None]


def disturbed(references: np.ndarray, seed: int = 1) -> np.ndarray:
    """Return estimates with spatial distortion, interference and artifacts."""
    random = np.random.default_rng(seed)
    filtered = np.asarray(lfilter([0.9, 0.2, -0.1], [1.0], references, axis=-1))
    leak = 0.2 * np.roll(references, 1, axis=0)
    return filtered + leak + 0.003 * random.standard_normal(references.shape)


def sixteen_bit(audio: np.ndarray) -> np.ndarray:
    """Round to the values of 16-bit PCM, as a decoded data set has them."""
    return np.round(audio * 32768) / 32768


def settings(**others: Any) -> dict[str, Any]:
    """Return arguments of ``bss_eval`` that go with ``museval_table``'s defaults."""
    return {"sample_rate": RATE, **others}
