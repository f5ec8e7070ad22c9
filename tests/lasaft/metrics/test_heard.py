"""SI-SAR, logWMSE, bleedless and fullness are what the packages that define them compute."""

from __future__ import annotations

import numpy as np
import pytest

from lasaft.metrics import bleedless_fullness, log_wmse, si_sar, si_sdr, usdr

RATE = 44100
# Of the signals below, float64, from: nussl's scale_bss_eval on channels one after the other;
# torch-log-wmse 1.1.0; bleed_full and sdr of Music-Source-Separation-Training (in float32, as they
# are there, bleedless and fullness are 1e-5 off).
PACKAGES = {
    "SI-SAR": [14.428868221, 15.350370132, 16.180398780],
    "logWMSE": [16.904374340, 17.050936670, 16.593196489],
    "bleedless": [19.957714060, 19.470294533, 18.993234132],
    "fullness": [27.267983298, 28.643923422, 27.002978687],
    "SDR": [13.088827155, 14.091874786, 13.077102702],
}


@pytest.fixture(scope="module")
def signals() -> tuple[np.ndarray, np.ndarray]:
    """Return references and estimates [source, channel, sample]: decaying tones, and leaks."""
    random, time = np.random.default_rng(7), np.arange(2 * RATE) / RATE
    waves = [
        np.sin(220 * np.pi * (k + 1) * time * (1 + 0.002 * c) + k) * np.exp(-3 * (3 * time % 1))
        for k in range(3)
        for c in range(2)
    ]
    true = 0.2 * (np.reshape(waves, (3, 2, -1)) + 0.05 * random.standard_normal((3, 2, len(time))))
    leaks = 0.1 * true[[1, 2, 0]] + 0.01 * random.standard_normal(true.shape)
    return true, true * np.array([0.9, 1.0, 1.1])[:, None, None] + leaks


def test_the_packages_that_define_them_agree(signals: tuple[np.ndarray, np.ndarray]) -> None:
    true, ours = signals
    bleedless, fullness = bleedless_fullness(true, ours, RATE)
    found = {
        "SI-SAR": si_sar(true, ours), "logWMSE": log_wmse(true, ours, true.sum(0), RATE),
        "bleedless": bleedless, "fullness": fullness, "SDR": usdr(true, ours, delta=1e-8),
    }  # fmt: skip
    for name, values in PACKAGES.items():
        assert found[name] == pytest.approx(values, abs=1e-6), name


def test_what_is_of_no_source_is_artifacts_and_a_gain_or_a_leak_is_not() -> None:
    random = np.random.default_rng(0)
    true, noise = random.standard_normal((2, 3, 2, 3000))
    flat = true.reshape(3, -1)
    shares = np.linalg.lstsq(flat.T, noise.reshape(3, -1).T)[0]
    noise -= (shares.T @ flat).reshape(noise.shape)
    clean = -0.3 * (true + 0.5 * true[[1, 2, 0]])
    gains = [np.vdot(s, e) / np.vdot(s, s) for s, e in zip(true, clean, strict=True)]
    energies = np.square(gains) * np.square(true).sum((1, 2))
    expected = 10 * np.log10(energies / np.square(noise).sum((1, 2)))
    assert si_sar(true, clean + noise) == pytest.approx(expected, abs=1e-9)
    assert (si_sar(true, clean) > 200).all()
    alone = si_sar(true[:1], clean[:1] + noise[:1])  # with one source all distortion is artifacts
    assert alone == pytest.approx(si_sdr(true[:1], clean[:1] + noise[:1]), abs=1e-9)


def test_scores_at_their_limits(signals: tuple[np.ndarray, np.ndarray]) -> None:
    true, ours = signals
    assert bleedless_fullness(true, true, RATE).tolist() == [[100.0] * 3] * 2
    assert log_wmse(true, true, true.sum(0), RATE) == pytest.approx(-4 * np.log(1e-8))
    silent = np.zeros_like(true)
    assert log_wmse(silent, silent, silent[0], RATE) == pytest.approx(-4 * np.log(1e-8))
    louder = bleedless_fullness(true, 2 * true, RATE)  # 6.02 dB more everywhere, nothing less
    assert louder[0] == pytest.approx(100 / (1 + 20 * np.log10(2)))
    assert louder[1].tolist() == [100.0] * 3
    mixture = ours.sum(0)
    plain = log_wmse(true, ours, mixture, RATE)
    assert log_wmse(3 * true, 3 * ours, 3 * mixture, RATE) == pytest.approx(plain)
    assert np.isnan(si_sar(silent, ours)).all()


def test_other_sample_rates_hear_the_same_frequencies() -> None:
    """A tone's error weighs the same at any rate, where both rates hold it."""
    scores = []
    for rate in (22050, 44100, 48000):
        time = np.arange(rate) / rate
        mixture, error = (np.sin(2 * np.pi * hz * time)[None] for hz in (500, 3000))
        scores.append(log_wmse([mixture], [mixture + 0.1 * error], mixture, rate)[0])
    assert scores == pytest.approx([scores[1]] * 3, abs=2e-3)  # what rings at the ends differs
