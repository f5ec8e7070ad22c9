"""What museval does with silence, NaN, lengths and shapes, BSS Eval here does too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lasaft.errors import AudioError
from lasaft.metrics import bss_eval, frame_sdr
from tests.helpers.bss_truth import (
    RATE,
    coloured,
    differences,
    disturbed,
    museval_metrics,
    museval_package,
    museval_table,
    settings,
    table,
)

TAPS = 16
CLOSE_DB = 1e-9
Change = Callable[[np.ndarray, np.ndarray], None]


def silence_reference(references: np.ndarray, estimates: np.ndarray) -> None:
    references[1] = 0


def silence_estimate(references: np.ndarray, estimates: np.ndarray) -> None:
    estimates[1] = 0


def cancel_reference(references: np.ndarray, estimates: np.ndarray) -> None:
    references[1, 0] = -references[1, 1]


def cancel_estimate(references: np.ndarray, estimates: np.ndarray) -> None:
    estimates[1, 0] = -estimates[1, 1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (silence_reference, r"references\[1\] is silent"),
        (silence_estimate, r"estimates\[1\] is silent"),
        (cancel_reference, r"references\[1\] is silent"),
        (cancel_estimate, r"estimates\[1\] is silent"),
    ],
)
def test_a_source_silent_throughout_is_refused(change: Change, named: str) -> None:
    references = coloured(2.2)
    estimates = disturbed(references)
    change(references, estimates)
    with pytest.raises(ValueError, match="non-silent"):
        museval_table(references, estimates, taps=TAPS)
    for score in (bss_eval, frame_sdr):
        with pytest.raises(AudioError, match=named):
            score(references, estimates, sample_rate=RATE)


def quiet_window_reference(references: np.ndarray, estimates: np.ndarray) -> None:
    references[0, :, RATE : 2 * RATE] = 0


def quiet_window_estimate(references: np.ndarray, estimates: np.ndarray) -> None:
    estimates[2, :, RATE : 2 * RATE] = 0


def cancelled_window(references: np.ndarray, estimates: np.ndarray) -> None:
    references[2, 0, RATE : 2 * RATE] = -references[2, 1, RATE : 2 * RATE]


def almost_quiet_window(references: np.ndarray, estimates: np.ndarray) -> None:
    references[2, :, RATE : 2 * RATE - 1] = 0


def nan_in_estimate(references: np.ndarray, estimates: np.ndarray) -> None:
    estimates[1, 0, RATE + 5] = np.nan


def infinity_in_estimate(references: np.ndarray, estimates: np.ndarray) -> None:
    estimates[1, 1, RATE + 5] = np.inf


def nan_after_the_last_frame(references: np.ndarray, estimates: np.ndarray) -> None:
    estimates[1, 0, -1] = np.nan


def nan_in_reference(references: np.ndarray, estimates: np.ndarray) -> None:
    references[1, 0, RATE + 5] = np.nan


def nan_in_reference_and_quiet_window(references: np.ndarray, estimates: np.ndarray) -> None:
    nan_in_reference(references, estimates)
    references[0, :, :RATE] = 0


@pytest.mark.parametrize(
    ("change", "nan_scores"),
    [
        (quiet_window_reference, 12),
        (quiet_window_estimate, 12),
        (cancelled_window, 12),
        (almost_quiet_window, 0),
        (nan_in_estimate, 12),
        (infinity_in_estimate, 12),
        (nan_after_the_last_frame, 12),
        (nan_in_reference, 30),
        (nan_in_reference_and_quiet_window, 32),
    ],
)
def test_silent_windows_and_nan_leave_gaps_where_museval_leaves_them(
    change: Change, nan_scores: int
) -> None:
    references = coloured(3.3)
    estimates = disturbed(references)
    change(references, estimates)
    theirs = museval_table(references, estimates, taps=TAPS)
    assert np.isnan(theirs).sum() == nan_scores
    ours = table(bss_eval(references, estimates, **settings(filter_taps=TAPS)))
    assert differences(ours, theirs).max() < CLOSE_DB
    sdr = frame_sdr(references, estimates, sample_rate=RATE)
    assert differences(sdr[None], theirs[:1]).max() < CLOSE_DB


def test_version_3_confines_a_silent_window_and_nan_to_their_frames() -> None:
    references = coloured(4.0, 2)
    estimates = disturbed(references)
    estimates[0, :, :RATE] = 0
    estimates[1, 0, RATE + 5] = np.nan
    references[1, 0, 2 * RATE + 5] = np.nan
    theirs = museval_table(references, estimates, taps=TAPS, mode="v3")
    ours = bss_eval(references, estimates, **settings(filter_taps=TAPS, mode="v3"))
    assert np.isfinite(theirs[..., 3]).all()
    assert differences(table(ours), theirs).max() < CLOSE_DB


@pytest.mark.parametrize("change_of_length", [-3000, 3000, -8 * RATE // 3])
def test_estimates_of_another_length_are_cut_or_end_in_silence(change_of_length: int) -> None:
    references = coloured(4.0, 2)
    estimates = disturbed(coloured(5.0, 2))[..., : 4 * RATE + change_of_length]
    museval = museval_package()
    # Without a setting for the taps, museval's own entry point computes the full filters.
    expected = np.stack(
        museval.evaluate(
            references.transpose(0, 2, 1), estimates.transpose(0, 2, 1), win=RATE, hop=RATE
        )
    )
    ours = bss_eval(references, estimates, **settings())
    assert differences(table(ours), expected).max() < CLOSE_DB
    assert differences(frame_sdr(references, estimates, sample_rate=RATE)[None], expected[:1]) < (
        CLOSE_DB
    )


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(RATE // 2, 1), (RATE, 1), (RATE + 1, 1), (2 * RATE - 1, 1), (2 * RATE, 2)],
)
def test_number_of_frames_of_a_short_track(samples: int, frames: int) -> None:
    references = coloured(2.0, 2)[..., :samples]
    estimates = disturbed(references)
    theirs = museval_table(references, estimates, taps=TAPS)
    ours = table(bss_eval(references, estimates, **settings(filter_taps=TAPS)))
    assert ours.shape == (4, 2, frames)
    assert differences(ours, theirs).max() < CLOSE_DB


def test_a_track_shorter_than_the_filter() -> None:
    references = coloured(0.02, 1, 1)[..., :40]
    estimates = disturbed(references)
    theirs = museval_table(references, estimates, taps=64)
    ours = table(bss_eval(references, estimates, **settings(filter_taps=64)))
    assert differences(ours, theirs).max() < CLOSE_DB


def test_estimates_equal_to_the_references_score_infinite_sdr_and_noise_elsewhere() -> None:
    references = np.round(coloured(2.2, 2) * 32768) / 32768
    theirs = museval_table(references, references, taps=TAPS)
    ours = table(bss_eval(references, references.copy(), **settings(filter_taps=TAPS)))
    assert np.isposinf(theirs[0]).all()
    np.testing.assert_array_equal(ours[0], theirs[0])
    # Rounding errors against the signal: no digits in common, both beyond 16 bit by far.
    assert min(ours[1:].min(), theirs[1:].min()) > 200


def test_a_single_source_has_no_interference() -> None:
    references = coloured(2.2, 1)
    ours = bss_eval(references, disturbed(references), **settings(filter_taps=TAPS))
    assert np.isposinf(ours.sir).all()


def test_accompaniment_scenario_is_the_pair_that_museval_scores() -> None:
    references = coloured(2.2, 4)
    estimates = disturbed(references)
    four = museval_table(references, estimates, taps=TAPS)
    pairs = [np.stack([x[0], x[1] + x[2] + x[3]]) for x in (references, estimates)]
    pair = museval_table(*pairs, taps=TAPS)
    ours = table(bss_eval(references, estimates, **settings(filter_taps=TAPS, accompaniment_of=0)))
    expected = np.concatenate([pair[:, :1], four[:, 1:], pair[:, 1:]], axis=1)
    assert differences(ours, expected).max() < CLOSE_DB
    assert differences(pair[:, :1], four[:, :1])[2] > 0.1  # another scenario, another SIR


@pytest.mark.parametrize("source", [-1, 2])
def test_accompaniment_of_an_unknown_source_is_refused(source: int) -> None:
    references = coloured(2.2, 2)
    with pytest.raises(AudioError, match=f"accompaniment_of {source}; allowed: 0 to 1"):
        bss_eval(references, references, **settings(accompaniment_of=source))


def test_accompaniment_of_the_only_source_is_refused() -> None:
    references = coloured(2.2, 1)
    with pytest.raises(AudioError, match="accompaniment_of needs other sources"):
        bss_eval(references, references, **settings(accompaniment_of=0))


def test_shapes_that_do_not_fit_are_refused_with_their_shapes() -> None:
    a = coloured(2.2, 2)
    cases = [
        ((a, a[:, :1]), "estimates have 1 channels, references 2"),
        (([a[0], a[1, :, :-1]], a), "references: sources of unequal shapes"),
        ((a, [a[0], a[1, :, :-1]]), "estimates: sources of unequal shapes"),
        ((a, [a[0], a[1, :1]]), "estimates: sources of unequal shapes"),
        ((a, a[:1]), "1 estimates for 2 references"),
        ((a[0], a[0]), r"references\[0\]: shape \(17600,\); each source must be"),
        ((a[:, :, :0], a), "holds no samples"),
        (([], []), "0 sources; 1 to 100"),
        ((a.astype(complex), a), "dtype complex128"),
    ]
    for (references, estimates), message in cases:
        for score in (bss_eval, frame_sdr):
            with pytest.raises(AudioError, match=message):
                score(references, estimates, sample_rate=RATE)


def test_museval_refuses_mono_against_stereo_too() -> None:
    a = coloured(2.2, 2).transpose(0, 2, 1)
    with pytest.raises(ValueError, match="shape"):
        museval_metrics().bss_eval(a, a[:, :, :1], window=RATE, hop=RATE)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mode": "v5"}, "mode 'v5'; allowed: 'v4', 'v3'"),
        ({"filter_taps": 0}, "filter_taps 0"),
        ({"window_seconds": 0.0}, "window_seconds 0.0"),
        ({"window_seconds": np.nan}, "window_seconds nan"),
        ({"hop_seconds": -1.0}, "hop_seconds -1.0"),
        ({"sample_rate": 0}, "at a sample rate of 0 Hz"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(option: dict[str, object], message: str) -> None:
    references = coloured(2.2, 2)
    with pytest.raises(AudioError, match=message):
        bss_eval(references, references, **{**settings(), **option})
