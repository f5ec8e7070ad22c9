"""BSS Eval in torch gives the numbers of the NumPy form, and museval's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch

from lasaft.errors import ConfigError
from lasaft.metrics import bss_eval, bss_eval_tracks
from lasaft.metrics.dense import solve
from lasaft.metrics.filters import projection_filters
from tests.helpers.bss_truth import (
    RATE,
    coloured,
    differences,
    disturbed,
    museval_table,
    settings,
    sixteen_bit,
    table,
)

CLOSE_DB = 1e-9
TAPS = 48
_NUMPY = importlib.import_module("lasaft.metrics.bss_eval")
_DENSE = importlib.import_module("lasaft.metrics.dense")


def quiet_window(references: np.ndarray, estimates: np.ndarray) -> None:
    references[0, :, RATE : 2 * RATE] = 0


def cancelled_window(references: np.ndarray, estimates: np.ndarray) -> None:
    estimates[1, 0, RATE : 2 * RATE] = -estimates[1, 1, RATE : 2 * RATE]


def channel_of_zeros(references: np.ndarray, estimates: np.ndarray) -> None:
    references[1, 1] = 0


def nan_in_estimate(references: np.ndarray, estimates: np.ndarray) -> None:
    estimates[1, 0, RATE + 5] = np.nan


def infinity_in_estimate(references: np.ndarray, estimates: np.ndarray) -> None:
    estimates[1, 1, RATE + 5] = np.inf


def nan_in_reference(references: np.ndarray, estimates: np.ndarray) -> None:
    references[1, 0, RATE + 5] = np.nan


def unchanged(references: np.ndarray, estimates: np.ndarray) -> None:
    pass


@pytest.mark.parametrize(
    "change",
    [
        unchanged, quiet_window, cancelled_window, channel_of_zeros, nan_in_estimate,
        infinity_in_estimate, nan_in_reference,
    ],
)  # fmt: skip
def test_hard_cases_score_as_with_museval(
    change: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    references = coloured(3.3)
    estimates = disturbed(references)
    change(references, estimates)
    ours = table(bss_eval(references, estimates, **settings(filter_taps=TAPS), device="cpu"))
    assert differences(ours, museval_table(references, estimates, taps=TAPS)).max() < CLOSE_DB


@pytest.mark.parametrize(
    ("sources", "channels", "window", "hop"),
    [
        (4, 2, 1.0, 1.0),
        (3, 1, 1.0, 1.0),  # mono
        (2, 3, 1.0, 1.0),
        (1, 2, 1.0, 1.0),
        (12, 2, 1.0, 1.0),  # many
        (2, 2, 0.5, 0.2),  # overlapping
        (2, 2, 0.3, 0.7),  # with gaps
        (2, 2, 2.9, 1.0),  # one frame and a long rest
        (2, 2, np.inf, np.inf),  # the whole track
    ],
)
@pytest.mark.parametrize("mode", ["v4", "v3"])
def test_every_layout_scores_as_in_numpy(
    sources: int, channels: int, window: float, hop: float, mode: Literal["v4", "v3"]
) -> None:
    references = coloured(3.4, sources, channels) * 1.5 ** np.arange(sources)[:, None, None]
    estimates = disturbed(references)
    taps = 24 if sources > 4 else TAPS
    options: dict[str, Any] = {"mode": mode, "filter_taps": taps, "sample_rate": RATE}
    options |= {"window_seconds": window, "hop_seconds": hop}
    ours = table(bss_eval(references, estimates, **options, device="cpu"))
    assert differences(ours, table(bss_eval(references, estimates, **options))).max() < CLOSE_DB


def test_full_length_filters_at_44100_hz() -> None:
    references = coloured(3.3, sources=2, rate=44100)
    estimates = disturbed(references)
    ours = table(bss_eval(references, estimates, device="cpu"))
    theirs = museval_table(references, estimates, window=44100, hop=44100)
    assert differences(ours, theirs).max() < CLOSE_DB


@pytest.mark.parametrize("samples", [40, RATE // 2, RATE, 2 * RATE - 1, 2 * RATE])
def test_short_tracks(samples: int) -> None:
    references = coloured(2.0, 2)[..., :samples]
    estimates = disturbed(references)
    taps = 8 if samples == 40 else TAPS
    ours = table(bss_eval(references, estimates, **settings(filter_taps=taps), device="cpu"))
    assert differences(ours, museval_table(references, estimates, taps=taps)).max() < CLOSE_DB


def test_a_track_shorter_than_the_filter() -> None:
    references = coloured(0.02, 1, 1)[..., :40]
    estimates = disturbed(references)
    ours = table(bss_eval(references, estimates, **settings(filter_taps=64), device="cpu"))
    assert differences(ours, museval_table(references, estimates, taps=64)).max() < CLOSE_DB


def test_equal_channels_are_solved_as_in_numpy() -> None:
    """The matrix is singular: both forms leave out the dependent taps."""
    references = sixteen_bit(coloured(2.2, 2))
    references[1, 1] = references[1, 0]
    estimates = disturbed(references)
    plain = table(bss_eval(references, estimates, **settings(filter_taps=TAPS)))
    ours = table(bss_eval(references, estimates, **settings(filter_taps=TAPS), device="cpu"))
    assert differences(ours, plain).max() < CLOSE_DB


def test_tracks_of_several_shapes_at_once_score_as_alone() -> None:
    tracks = []
    for number, (seconds, sources, channels) in enumerate(
        [(2.2, 3, 2), (3.4, 3, 2), (1.3, 2, 1), (2.2, 3, 2)]
    ):
        references = coloured(seconds, sources, channels, seed=number)
        if number == 3:
            references[1, 1] = references[1, 0]  # a singular one among them
        tracks.append((references.astype(np.float32), disturbed(references).astype(np.float32)))
    options = settings(filter_taps=TAPS, accompaniment_of=0)
    together = bss_eval_tracks(tracks, **options, device="cpu")
    for scores, (references, estimates) in zip(together, tracks, strict=True):
        alone = table(bss_eval(references, estimates, **options))
        assert differences(table(scores), alone).max() < CLOSE_DB


def test_bounds_of_memory_do_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    references = coloured(12, 2).astype(np.float32)
    estimates = disturbed(references).astype(np.float32)
    options = settings(filter_taps=TAPS)
    plain = table(bss_eval(references, estimates, **options, device="cpu"))
    monkeypatch.setattr(_DENSE, "_KEEP_BYTES", 0)
    monkeypatch.setattr(_DENSE, "_BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(_DENSE, "_STACK_BYTES", 0)
    small = table(bss_eval(references, estimates, **options, device="cpu"))
    assert not np.array_equal(small, plain)  # sums in another order
    assert differences(small, plain).max() < CLOSE_DB
    monkeypatch.setattr(_DENSE, "_LARGEST_BYTES", 0)
    monkeypatch.setattr(_NUMPY, "_LONGEST_TRANSFORM", 0)
    on_host = table(bss_eval(references, estimates, **options, device="cpu"))
    assert not np.array_equal(on_host, small)
    assert differences(on_host, plain).max() < CLOSE_DB


def test_singular_and_broken_systems_in_a_stack_are_each_their_own() -> None:
    random = np.random.default_rng(0)
    systems = []
    for kind in ("regular", "singular", "broken"):
        lags, cross = np.zeros((1, 1, 4)), random.standard_normal((1, 2, 4))
        lags[0, 0] = {"regular": [2, 1, 0, 0], "singular": [1, 1, 1, 1], "broken": np.nan}[kind]
        systems.append((lags, cross))
    found = solve([(torch.from_numpy(a), torch.from_numpy(b)) for a, b in systems])
    for ours, (lags, cross) in zip(found, systems, strict=True):
        np.testing.assert_allclose(ours, projection_filters(lags, cross), rtol=1e-12)
    assert np.isnan(found[2]).all()


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "mps"])
def test_a_device_that_is_not_here_or_cannot_score_is_refused(device: str) -> None:
    references = coloured(1.2, 2)
    with pytest.raises(ConfigError, match=f"device: got '{device}'"):
        bss_eval(references, disturbed(references), **settings(), device=device)
