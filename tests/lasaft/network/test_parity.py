"""The networks give the reference implementation's numbers."""

from __future__ import annotations

import pytest
import torch

from lasaft.authors.layout import config_from_authors
from tests.helpers.parity import Fixture, fixture_names, relative_error

# The reference's own float32 and float64 runs differ by up to 2e-6 of the largest value.
TOLERANCE = 3e-6


@pytest.mark.parametrize("name", fixture_names("net_*"))
@torch.no_grad()
def test_network_equals_the_reference(name: str) -> None:
    fixture = Fixture(name)
    model = fixture.model()
    condition, spec = fixture["condition"], fixture["input_spec"]
    output = model.network(spec, condition)
    assert relative_error(output, fixture["out_spec"]) < TOLERANCE
    if "forward" in fixture:
        assert relative_error(model.to_estimate(output, spec), fixture["forward"]) < TOLERANCE


@pytest.mark.parametrize("name", fixture_names("net_*"))
@torch.no_grad()
def test_separated_waveform_equals_the_reference(name: str) -> None:
    fixture = Fixture(name)
    model = fixture.model()
    separated = model(fixture.waves("wave"), fixture["condition"])
    # The inverse transform cancels most of a random spectrogram, and its rounding error stays.
    assert relative_error(separated, fixture.waves("separated")) < 1e-5


@pytest.mark.parametrize("name", fixture_names("net_*"))
@torch.no_grad()
def test_spectrogram_and_condition_equal_the_reference(name: str) -> None:
    fixture = Fixture(name)
    model = fixture.model()
    seen = model.network_input(model.spectrogram.stft(fixture.waves("wave")))
    assert relative_error(seen, fixture["input_spec"]) < TOLERANCE
    vector, gamma, beta = model.network.conditioner(fixture["condition"])
    assert relative_error(vector, fixture["embedding"]) < TOLERANCE
    assert relative_error(torch.stack(gamma, dim=1), fixture["gammas"]) < TOLERANCE
    assert relative_error(torch.stack(beta, dim=1), fixture["betas"]) < TOLERANCE


@pytest.mark.parametrize("name", fixture_names("net_*"))
def test_variant_is_told_from_the_weights(name: str) -> None:
    fixture = Fixture(name)
    hyper_parameters = fixture.meta["config"]
    named = config_from_authors(hyper_parameters, variant=fixture.meta["variant"])
    assert config_from_authors(hyper_parameters, fixture.state) == named
