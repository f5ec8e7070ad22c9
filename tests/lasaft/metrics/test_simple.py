"""uSDR and SI-SDR follow their formulas, and museval's JSON is written and read exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lasaft.errors import AudioError, DataError
from lasaft.metrics import (
    METRICS,
    Scores,
    bss_eval,
    museval_json,
    nsdr,
    read_museval_json,
    si_sdr,
    usdr,
)
from tests.helpers.bss_truth import RATE, coloured, disturbed, museval_package, settings

EXACT_DB = 1e-10  # float64 sums of 10^5 terms


def orthogonal_pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a stereo signal of energy 4 and noise of energy 1 without correlation."""
    random = np.random.default_rng(seed)
    signal, noise = random.standard_normal((2, 2, 5000))
    signal *= 2 / np.linalg.norm(signal)
    noise -= np.vdot(noise, signal) / 4 * signal
    return signal, noise / np.linalg.norm(noise)


def test_usdr_is_the_ratio_of_energies_of_the_whole_song() -> None:
    signal, noise = orthogonal_pair()
    score = usdr([signal, signal], [signal + noise, signal + 0.1 * noise])
    assert score == pytest.approx(10 * np.log10([4.0, 400.0]), abs=1e-4)  # delta is 1e-7
    exact = usdr([signal], [signal + 0.1 * noise], delta=0.0)
    assert exact == pytest.approx(10 * np.log10([400.0]), abs=EXACT_DB)


def test_usdr_stays_finite_by_its_delta() -> None:
    signal, noise = orthogonal_pair()
    silence = np.zeros_like(signal)
    scores = usdr([signal, silence, silence], [signal, silence, noise])
    expected = 10 * np.log10([(4 + 1e-7) / 1e-7, 1.0, 1e-7 / (1 + 1e-7)])
    assert scores == pytest.approx(expected, abs=EXACT_DB)
    smaller = usdr([signal], [signal], delta=1e-8)
    assert smaller == pytest.approx([10 * np.log10((4 + 1e-8) / 1e-8)], abs=EXACT_DB)


def test_nsdr_is_another_name_of_usdr() -> None:
    assert nsdr is usdr


def test_si_sdr_sees_noise_but_no_gain() -> None:
    signal, noise = orthogonal_pair()
    for gain in (1.0, 0.01, -30.0):
        score = si_sdr([signal], [gain * (signal + 0.1 * noise)])
        assert score == pytest.approx(10 * np.log10([400.0]), abs=EXACT_DB)


def test_si_sdr_at_its_limits() -> None:
    signal, noise = orthogonal_pair()
    silence = np.zeros_like(signal)
    left, right = np.stack([signal[0], silence[0]]), np.stack([silence[0], signal[0]])
    scores = si_sdr([signal, left, silence], [0.5 * signal, right, noise])
    assert scores[0] == np.inf
    assert scores[1] == -np.inf
    assert np.isnan(scores[2])


def test_si_sdr_without_means_ignores_an_offset() -> None:
    signal, noise = (x - x.mean(axis=1, keepdims=True) for x in orthogonal_pair())
    estimate = signal + 0.1 * noise
    plain = si_sdr([signal], [estimate])
    assert si_sdr([signal], [estimate + 0.3])[0] < plain[0] - 10
    assert si_sdr([signal], [estimate + 0.3], zero_mean=True) == pytest.approx(plain, abs=1e-9)


@pytest.mark.parametrize("metric", [usdr, si_sdr])
def test_simple_metrics_take_tensors_and_refuse_other_shapes(metric) -> None:
    signal, noise = orthogonal_pair()
    reference, estimate = np.stack([signal, noise]), np.stack([signal + noise, noise])
    from_tensors = metric(torch.from_numpy(reference), torch.from_numpy(estimate).requires_grad_())
    np.testing.assert_array_equal(from_tensors, metric(reference, estimate))
    with pytest.raises(AudioError, match="differ in shape"):
        metric(reference, estimate[..., :-1])
    with pytest.raises(AudioError, match=r"references\[0\]: shape \(5000,\)"):
        metric(reference[0], estimate[0])


def test_medians_and_means_leave_gaps_out_and_count_them() -> None:
    rows = np.array([[1.0, np.nan, 3.0, 8.0], [np.inf, 2.0, 4.0, np.nan], [np.nan] * 4])
    scores = Scores(rows, rows + 1, rows + 2, rows + 3)
    np.testing.assert_array_equal(scores.median(), [3.0, 3.0, np.nan])
    np.testing.assert_array_equal(scores.mean("SAR"), [7.0, 6.0, np.nan])
    np.testing.assert_array_equal(scores.missing("SIR"), [1, 2, 4])
    with pytest.raises(AudioError, match="metric 'SNR'; known: SDR, ISR, SIR, SAR"):
        scores.median("SNR")


def scored_with_gaps() -> Scores:
    references = coloured(3.2, 2)
    estimates = disturbed(references)
    estimates[1, :, RATE : 2 * RATE] = 0  # NaN in the second frame
    estimates[0, :, :RATE] = references[0, :, :RATE]  # SDR infinite in the first
    return bss_eval(references, estimates, **settings(filter_taps=8))


def test_json_is_what_museval_writes_of_the_same_scores() -> None:
    aggregate = museval_package("museval.aggregate")
    validate = museval_package("jsonschema").validate
    scores = scored_with_gaps()
    store = aggregate.TrackStore(track_name="a song", win=1.0, hop=1.0)
    for row, name in enumerate(("vocals", "rest")):
        store.add_target(name, {m: scores.metric(m)[row].tolist() for m in METRICS})
    ours = museval_json(scores, ["vocals", "rest"])
    assert ours == store.json
    assert ours.count("NaN") == 9
    validate(json.loads(ours), store.schema)


def test_json_read_back_gives_the_rounded_scores() -> None:
    scores = scored_with_gaps()
    names, again = read_museval_json(museval_json(scores, ["vocals", "rest"]))
    assert names == ("vocals", "rest")
    assert (again.window_seconds, again.hop_seconds) == (1.0, 1.0)
    for name in METRICS:
        exact = scores.metric(name)
        expected = np.where(np.isinf(exact), np.nan, exact)
        np.testing.assert_allclose(again.metric(name), expected, rtol=0, atol=5.001e-6)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"targets": []},
        {"targets": [{"name": "vocals", "frames": []}]},
        {"targets": [{"name": "vocals", "frames": [{"time": 0, "duration": 1, "metrics": {}}]}]},
    ],
)
def test_json_of_another_structure_is_refused(content) -> None:
    with pytest.raises(DataError, match="not museval's structure"):
        read_museval_json(json.dumps(content))


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(DataError, match="not JSON"):
        read_museval_json("{")


def test_json_with_targets_of_unequal_lengths_is_refused() -> None:
    content = json.loads(museval_json(scored_with_gaps(), ["vocals", "rest"]))
    del content["targets"][1]["frames"][-1]
    with pytest.raises(DataError, match="equally many frames"):
        read_museval_json(json.dumps(content))


def test_json_needs_one_name_for_each_source() -> None:
    for names in (["vocals"], ["vocals", "vocals"]):
        with pytest.raises(DataError, match="for 2 scored sources"):
            museval_json(scored_with_gaps(), names)
