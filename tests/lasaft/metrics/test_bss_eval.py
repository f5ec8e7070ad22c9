"""BSS Eval gives museval's own numbers, frame by frame, in every mode."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Literal

import numpy as np
import pytest
import torch

from lasaft.metrics import bss_eval, frame_sdr
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

# Well-conditioned signals: both compute in float64, and differ by rounding only.
CLOSE_DB = 1e-9
SDR_DB = 1e-9
TAPS = 48  # museval's time grows with the cube of the taps; one test has the full 512


def test_full_length_filters_of_three_stereo_sources_at_44100_hz() -> None:
    references = coloured(3.3, rate=44100)
    estimates = disturbed(references)
    theirs = museval_table(references, estimates, window=44100, hop=44100)
    assert theirs.shape == (4, 3, 3)
    assert np.ptp(theirs[:, :, 0]) > 10  # the case is no trivial one
    assert differences(table(bss_eval(references, estimates)), theirs).max() < CLOSE_DB


@pytest.mark.parametrize(
    ("sources", "channels", "window", "hop"),
    [
        (4, 2, 1.0, 1.0),
        (3, 1, 1.0, 1.0),
        (2, 3, 1.0, 1.0),
        (1, 2, 1.0, 1.0),
        (2, 2, 0.5, 0.2),  # overlapping
        (2, 2, 0.3, 0.7),  # with gaps
        (2, 2, 0.03, 0.03),  # shorter than eight filters
        (2, 2, 2.9, 1.0),  # one frame and a long rest
        (2, 2, np.inf, np.inf),  # the whole track
    ],
)
@pytest.mark.parametrize("mode", ["v4", "v3"])
def test_every_layout_of_sources_channels_and_windows(
    sources: int, channels: int, window: float, hop: float, mode: Literal["v4", "v3"]
) -> None:
    references = coloured(3.4, sources, channels)
    estimates = disturbed(references)
    ours = bss_eval(
        references, estimates, mode=mode, filter_taps=TAPS, window_seconds=window,
        hop_seconds=hop, sample_rate=RATE,
    )  # fmt: skip
    theirs = museval_table(
        references, estimates, mode=mode, taps=TAPS, window=window * RATE, hop=hop * RATE
    )
    if mode == "v3" and window < 0.1:
        # 240 samples for 4 x 48 unknowns each frame: the systems are worse conditioned.
        assert differences(table(ours), theirs).max() < 1e-6
    else:
        assert differences(table(ours), theirs).max() < CLOSE_DB


def test_version_3_differs_from_version_4_beyond_the_sdr() -> None:
    references = coloured(3.4, 2)
    estimates = disturbed(references)
    four, three = (
        table(bss_eval(references, estimates, filter_taps=TAPS, mode=mode, sample_rate=RATE))
        for mode in ("v4", "v3")
    )
    gaps = differences(four, three)
    assert gaps[0] < SDR_DB
    assert gaps[1:].min() > 1e-3


@pytest.mark.parametrize("snr_db", [80.0, 40.0, -20.0])
def test_very_good_and_very_bad_estimates(snr_db: float) -> None:
    references = coloured(2.2, 2)
    noise = np.random.default_rng(3).standard_normal(references.shape)
    noise *= np.linalg.norm(references[0]) / np.linalg.norm(noise[0]) * 10 ** (-snr_db / 20)
    ours = table(bss_eval(references, references + noise, **settings(filter_taps=TAPS)))
    theirs = museval_table(references, references + noise, taps=TAPS)
    assert ours[0, 0] == pytest.approx(snr_db, abs=1.0)
    # Distortions 80 dB down keep 8 of 16 digits.
    assert differences(ours, theirs).max() < (1e-6 if snr_db > 60 else CLOSE_DB)


def test_levels_far_apart_and_one_almost_silent_source() -> None:
    references = coloured(2.2, 3)
    references[1] *= 1e-6
    estimates = disturbed(references)
    ours = table(bss_eval(references, estimates, **settings(filter_taps=TAPS)))
    theirs = museval_table(references, estimates, taps=TAPS)
    assert differences(ours, theirs).max() < 1e-6


def test_a_channel_of_zeros_in_a_reference() -> None:
    references = coloured(2.2, 2)
    estimates = disturbed(references)
    references[1, 1] = 0
    ours = table(bss_eval(references, estimates, **settings(filter_taps=TAPS)))
    theirs = museval_table(references, estimates, taps=TAPS)
    assert differences(ours, theirs).max() < CLOSE_DB


def test_dual_mono_references_stay_within_what_museval_differs_from_itself() -> None:
    """Copies of a channel leave the filters undefined; scores hold up to museval's rounding."""
    references = sixteen_bit(coloured(2.2, 2))
    references[1, 1] = references[1, 0]
    estimates = disturbed(references)
    theirs = museval_table(references, estimates, taps=TAPS)
    order = [1, 0]
    spread = np.zeros(4)
    for scale in (1.0, 3.0):
        again = museval_table(
            scale * references[order][:, ::-1], scale * estimates[order][:, ::-1], taps=TAPS
        )
        spread = np.maximum(spread, differences(again[:, order], theirs))
    ours = table(bss_eval(references, estimates, **settings(filter_taps=TAPS)))
    gaps = differences(ours, theirs)
    assert gaps[0] < SDR_DB
    assert np.all(gaps <= np.maximum(2 * spread, CLOSE_DB)), (gaps, spread)


def test_order_of_sources_and_channels_only_reorders_the_scores() -> None:
    references = coloured(2.2, 3)
    estimates = disturbed(references)
    order = [2, 0, 1]
    plain = table(bss_eval(references, estimates, **settings()))
    moved = table(bss_eval(references[order][:, ::-1], estimates[order][:, ::-1], **settings()))
    assert differences(moved, plain[:, order]).max() < CLOSE_DB


def test_arrays_tensors_lists_and_transposed_views_give_the_same_scores() -> None:
    references = coloured(2.2, 2).astype(np.float32)
    estimates = disturbed(references).astype(np.float32)
    plain = table(bss_eval(references.astype(float), estimates.astype(float), **settings()))
    forms = [
        (references, estimates),
        (torch.from_numpy(references), torch.from_numpy(estimates).requires_grad_()),
        ([r.T.copy().T for r in references], list(torch.from_numpy(estimates))),
    ]
    for reference, estimate in forms:
        np.testing.assert_array_equal(table(bss_eval(reference, estimate, **settings())), plain)


def test_integer_samples_score_as_their_values() -> None:
    references = np.round(coloured(2.2, 2) * 8000).astype(np.int16)
    estimates = np.round(disturbed(references)).astype(np.int16)
    ours = table(bss_eval(references, estimates, **settings(filter_taps=TAPS)))
    theirs = museval_table(references.astype(float), estimates.astype(float), taps=TAPS)
    assert differences(ours, theirs).max() < CLOSE_DB


def test_frame_sdr_is_the_sdr_of_version_4() -> None:
    references = coloured(3.4, 3)
    estimates = disturbed(references)
    frames = {"window_seconds": 0.5, "hop_seconds": 0.2}
    theirs = museval_table(references, estimates, window=0.5 * RATE, hop=0.2 * RATE, taps=4)
    ours = frame_sdr(references, estimates, sample_rate=RATE, **frames)
    assert differences(ours[None], theirs[:1]).max() < 1e-12


def test_long_windows_are_filtered_in_stretches_with_the_same_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    references = coloured(20, 2)
    references[0, :, 90000:] *= 0.1
    estimates = disturbed(references)
    frames = {"window_seconds": 18.0, "hop_seconds": 1.5, "filter_taps": TAPS}
    whole = table(bss_eval(references, estimates, **settings(**frames)))
    monkeypatch.setattr(sys.modules["lasaft.metrics.bss_eval"], "_LONGEST_TRANSFORM", 0)
    pieces = table(bss_eval(references, estimates, **settings(**frames)))
    assert whole.shape == (4, 2, 2)
    assert not np.array_equal(whole, pieces)  # another way to the same numbers
    assert differences(pieces, whole).max() < CLOSE_DB


def test_spectra_read_twice_or_kept_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    references = coloured(12, 2)
    estimates = disturbed(references)
    kept = table(bss_eval(references, estimates, **settings()))
    monkeypatch.setattr(sys.modules["lasaft.metrics.bss_eval"], "_KEEP_BYTES", 0)
    monkeypatch.setattr(sys.modules["lasaft.metrics.spectra"], "BLOCK_BYTES", 3 << 20)
    again = table(bss_eval(references, estimates, **settings()))
    assert differences(again, kept).max() < CLOSE_DB


@pytest.mark.parametrize("window", [0.5, np.inf])
def test_memory_does_not_grow_with_the_length(
    monkeypatch: pytest.MonkeyPatch, window: float
) -> None:
    monkeypatch.setattr(sys.modules["lasaft.metrics.bss_eval"], "_KEEP_BYTES", 0)
    monkeypatch.setattr(sys.modules["lasaft.metrics.bss_eval"], "_LONGEST_TRANSFORM", 1 << 15)
    monkeypatch.setattr(sys.modules["lasaft.metrics.spectra"], "BLOCK_BYTES", 8 << 20)
    peaks = []
    for seconds in (40, 160):
        references = coloured(seconds, 2, 1).astype(np.float32)
        estimates = references + np.float32(0.1)
        tracemalloc.start()
        bss_eval(references, estimates, **settings(filter_taps=8, window_seconds=window))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    extra_samples = 120 * RATE * 4
    assert peaks[1] - peaks[0] < 0.25 * extra_samples * 4  # a quarter of the added float32 signals
