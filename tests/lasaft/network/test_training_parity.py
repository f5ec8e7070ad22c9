"""One training step gives the reference's loss, gradients, weights and statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lasaft.authors.layout import authors_name
from lasaft.network.losses import build_loss
from lasaft.network.model import LaSAFT
from tests.helpers.parity import Fixture, relative_error

FIXTURE = Fixture("train_gpocm_lasaft")
PREFIX = "spec2spec."


def after_one_step(loss_name: str) -> tuple[float, LaSAFT]:
    """Loss and the model with its gradients, after one Adam step without dropout."""
    model = FIXTURE.model().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    specs = [model.spectrogram.stft(FIXTURE.waves(name)) for name in ("mixture", "target")]
    estimate = model.estimate(specs[0], FIXTURE["condition"])
    loss = build_loss(loss_name, model)(estimate, specs[1], specs[0])
    loss.backward()
    optimizer.step()
    return loss.item(), model


@pytest.mark.parametrize("loss_name", ["spec_mse", "raw_l1"])
def test_training_step_equals_the_reference(loss_name: str) -> None:
    truth = FIXTURE.meta["losses"][loss_name]
    loss, model = after_one_step(loss_name)
    assert loss == pytest.approx(truth["value_fp64"], rel=1e-6)
    names = {key: PREFIX + authors_name(key, model.config) for key in model.network.state_dict()}

    total = truth["total_grad_norm"]
    gradients = {
        names[key]: value.grad
        for key, value in model.network.named_parameters()
        if value.grad is not None
    }
    assert set(gradients) == set(truth["grad_norms_fp64"])
    for key, norm in truth["grad_norms_fp64"].items():
        # A bias before a BatchNorm has no gradient but rounding errors, hence the absolute part.
        assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6 * total), key
    for key in FIXTURE.names(f"grad/{loss_name}/"):
        gradient = gradients[key.removeprefix(f"grad/{loss_name}/")]
        assert relative_error(gradient, FIXTURE[key]) < 1e-4, key

    state = {names[key]: value for key, value in model.network.state_dict().items()}
    after = FIXTURE.names(f"after/{loss_name}/")
    assert len(after) > 10
    for key in after:
        assert relative_error(state[key.removeprefix(f"after/{loss_name}/")], FIXTURE[key]) < 1e-4


def test_every_parameter_has_a_gradient() -> None:
    _, model = after_one_step("spec_mse")
    assert all(parameter.grad is not None for parameter in model.parameters())
