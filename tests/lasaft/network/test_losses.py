"""The losses give the reference's values and gradients, and get smaller for better estimates."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from lasaft.config import ModelConfig
from lasaft.errors import ConfigError
from lasaft.network.losses import build_loss, waveform_loss
from lasaft.network.model import LaSAFT
from pipeline.config import LossName
from tests.helpers.parity import Fixture

FIXTURE = Fixture("losses_a")
VALUES = FIXTURE.meta["values_fp32_fp64"]
GRADIENTS = FIXTURE.meta["grad_norm_wrt_estimate"]
# float32 sums over a thousand samples; the reference's own float32 is up to 1e-7 off its float64.
TOLERANCE = 2e-6
BOTH = {
    "loss_raw_scale": 0.3,
    "loss_raw_mode": "raw_l1",
    "loss_spec_scale": 0.7,
    "loss_spec_mode": "spec_mse",
}


def tiny_model(**options: object) -> LaSAFT:
    small = {"n_blocks": 3, "internal_channels": 2, "n_internal_layers": 1, "num_frame": 16}
    return LaSAFT(ModelConfig(**{"n_fft": 128, "hop_length": 64, **small, **options}))


@pytest.mark.parametrize("case", [case for case in VALUES if case[:4] not in ("spec", "raw_")])
def test_windowed_loss_equals_the_reference(case: str) -> None:
    name, sizes = case.split("@")
    window, hop = map(int, sizes.split("/"))
    estimate = FIXTURE.waves("estimate").requires_grad_()
    loss = waveform_loss(
        name, estimate, FIXTURE.waves("target"), window_length=window, hop_length=hop
    )
    loss.backward()
    # Theirs is to be maximised.
    sign = -1 if name == "sdr" else 1
    assert loss.item() == pytest.approx(sign * VALUES[case][1], rel=TOLERANCE)
    assert estimate.grad is not None
    assert estimate.grad.norm().item() == pytest.approx(GRADIENTS[case], rel=TOLERANCE)


@pytest.mark.parametrize("name", ["spec_l1", "spec_l2", "spec_mse", "raw_l1", "raw_l2", "raw_mse"])
def test_plain_loss_equals_the_reference(name: str) -> None:
    assert loss_through_the_spectrogram(name) == pytest.approx(
        VALUES[f"{name}@128/64"][1], rel=TOLERANCE
    )


def test_raw_and_spec_equals_the_reference() -> None:
    assert loss_through_the_spectrogram("raw_and_spec", **BOTH) == pytest.approx(
        VALUES["raw_and_spec@128/64"][1], rel=TOLERANCE
    )


@pytest.mark.parametrize("name", ["sdr_like", "dsr", "ldsr", "distortion", "nsdr", "ncs", "nlcs"])
def test_window_length_is_n_fft_and_its_hop_the_spectrogram_s(name: str) -> None:
    assert loss_through_the_spectrogram(name) == pytest.approx(
        VALUES[f"{name}@128/64"][1], rel=1e-5
    )


def loss_through_the_spectrogram(name: str, **options: object) -> float:
    model = tiny_model()
    specs = [model.spectrogram.stft(FIXTURE.waves(wave)) for wave in ("estimate", "target")]
    return build_loss(name, model, **options)(specs[0], specs[1], specs[1]).item()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", get_args(LossName))
@pytest.mark.parametrize("spec_type", ["complex", "magnitude"])
def test_better_estimate_has_a_smaller_loss(name: str, spec_type: str) -> None:
    if (name, spec_type) == ("sdr_like", "magnitude"):
        pytest.skip("it rewards loudness, which noise adds to magnitudes")
    model = tiny_model(spec_type=spec_type)
    target = model.spectrogram.stft(FIXTURE.waves("target"))
    noise = model.spectrogram.stft(torch.randn(3, 2, 960, generator=torch.manual_seed(0)))
    loss = build_loss(name, model, **(BOTH if name == "raw_and_spec" else {}))

    def of_noise(amount: float) -> float:
        seen = model.network_input(target + amount * noise)
        return loss(seen, target, target).item()

    assert of_noise(0.01) < of_noise(0.1) < of_noise(1.0)


def test_silence_gives_finite_loss_and_gradient() -> None:
    model = tiny_model()
    silence = torch.zeros(2, 4, 16, 65)
    for name in get_args(LossName):
        estimate = torch.zeros_like(silence).requires_grad_()
        loss = build_loss(name, model, **(BOTH if name == "raw_and_spec" else {}))
        loss(estimate, silence, silence).backward()
        assert estimate.grad is not None
        assert estimate.grad.isfinite().all(), name


def test_unknown_loss_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"got 'l3', allowed: spec_l1, .*nlcs"):
        build_loss("l3", tiny_model())


@pytest.mark.parametrize(
    ("option", "mode"),
    [("loss_raw_mode", "spec_l1"), ("loss_spec_mode", "raw_l1"), ("loss_raw_mode", "raw_and_spec")],
)
def test_the_parts_of_raw_and_spec_are_of_their_own_kind(option: str, mode: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}: got '{mode}', allowed: "):
        build_loss("raw_and_spec", tiny_model(), **{**BOTH, option: mode})  # type: ignore[arg-type]


def test_the_opposite_of_the_target_has_a_finite_nlcs() -> None:
    for seed in range(20):
        target = torch.randn(1, 2, 4096, generator=torch.Generator().manual_seed(seed))
        loss = waveform_loss("nlcs", -target, target, window_length=256, hop_length=128)
        assert torch.isfinite(loss)


def test_raw_and_spec_names_every_missing_option() -> None:
    with pytest.raises(ConfigError) as caught:
        build_loss("raw_and_spec", tiny_model(), loss_raw_scale=1.0)
    assert {problem.split(":")[0] for problem in map(str, caught.value.problems)} == {
        "loss_raw_mode",
        "loss_spec_scale",
        "loss_spec_mode",
    }


def test_a_mode_of_raw_and_spec_may_leave_its_domain_out() -> None:
    model, short = tiny_model(), {**BOTH, "loss_raw_mode": "l1", "loss_spec_mode": "mse"}
    generator = torch.Generator().manual_seed(0)
    bins = model.config.n_fft // 2 + 1
    specs = [torch.randn(1, 4, 8, bins, generator=generator) for _ in range(3)]
    losses = [
        build_loss("raw_and_spec", model, **options)(*specs)  # type: ignore[arg-type]
        for options in (BOTH, short)
    ]
    assert losses[0] == losses[1]
