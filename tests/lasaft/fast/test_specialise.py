"""The inference form gives the plain network's output."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from lasaft.fast import onednn
from lasaft.fast.specialise import specialise
from lasaft.network.model import LaSAFT
from lasaft.parts import BLOCKS, MODULATIONS
from tests.helpers.models import random_spec, small_model


@torch.no_grad()
def plain(model: LaSAFT, spec: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
    """Each condition by itself through the network: [batch, condition, plane, frame, bin]."""
    outputs = []
    for condition in conditions:
        estimate = model.estimate(spec, torch.stack([condition] * len(spec)))
        outputs.append(model.to_spectrogram(estimate, spec))
    return torch.stack(outputs, dim=1)


def error(model: LaSAFT, dtype: torch.dtype = torch.float32, batch: int = 2) -> float:
    """Largest difference, relative to the plain network's scale."""
    spec, conditions = random_spec(model, batch), torch.tensor([3, 0, 1])
    if model.config.takes_sets:
        conditions = torch.eye(4)[conditions] + torch.eye(4)[2]
    expected = plain(model, spec, conditions)
    found = specialise(model, conditions, dtype)(spec)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("condition_to", ["encoder", "decoder", "full"])
def test_equals_the_plain_network(block: Any, modulation: Any, condition_to: Any) -> None:
    model = small_model(block=block, modulation=modulation, condition_to=condition_to)
    # Folding reorders float32 sums; 2e-5 is what users are promised.
    assert error(model) < 5e-6


@pytest.mark.parametrize(
    "options",
    [
        {"n_blocks": 1},
        {"n_blocks": 1, "condition_to": "full", "block": "tfc_tdf"},
        {"n_blocks": 5, "block": "tfc_tdf"},
        {"n_blocks": 5, "t_down_layers": (1,), "f_down_layers": (0,)},
        {"n_internal_layers": 1},
        {"n_internal_layers": 3, "block": "tfc_tdf"},
        {"n_internal_layers": 5},
        {"internal_channels": 1},
        {"internal_channels": 200},
        {"bn_factor": None},
        {"bn_factor": None, "block": "tfc_lightsaft"},
        {"bn_factor": None, "block": "tfc_tdf", "tfc_tdf_bias": True},
        {"tfc_tdf_bias": True},
        {"tfc_tdf_bias": True, "block": "tfc_lightsaft"},
        {"tfc_tdf_activation": "softmax"},
        {"tfc_tdf_activation": "tanh", "block": "tfc_tdf"},
        {"tfc_activation": "leaky_relu", "block": "tfc"},
        {"first_conv_activation": "identity", "tfc_tdf_activation": "identity"},
        {"kernel_size_t": 1, "kernel_size_f": 5},
        {"spec_type": "magnitude", "spec_est_mode": "masking"},
        {"spec_type": "magnitude", "last_activation": "relu"},
        {"spec_est_mode": "masking"},
        {"input_channels": 2},
        {"control_vector_type": "one_hot_mode", "pocm_type": "naive"},
        {"control_vector_type": "multi_hot"},
        {"control_vector_type": "multi_hot", "block": "tfc_lasaft_v2", "query_listen": True},
        {"bias": True, "block": "tdf"},
        {"control_type": "per_block"},
        {"control_type": "per_block", "modulation": "film", "gamma_activation": "relu"},
        {"block": "tfc_lightsaft_v2", "query_listen": True, "key_listen": True},
        {"block": "tfc_lightsaft_v2", "query_listen": True, "modulation": "none"},
        {"block": "tfc_lasaft_v2", "key_listen": True, "condition_to": "full", "norm": "gn"},
        {"block": "tfc_lightsaft_v2", "bn_factor": None, "key_listen": True},
        {"block": "tfc_lasaft_v2", "n_blocks": 1},
        {"norm": "gn", "scale_activation": "relu"},
        {"norm": "gn", "block": "tfc_lightsaft", "condition_to": "full", "n_blocks": 5},
        {"norm": "gn", "block": "tdf"},
        {"scale_activation": "leaky_relu", "block": "tfc_tdf"},
    ],
    ids=str,
)
def test_equals_unusual_plain_networks(options: dict[str, Any]) -> None:
    assert error(small_model(**options)) < 5e-6


@pytest.mark.parametrize(
    "block", ["tfc", "tfc_tdf", "tfc_lasaft", "tfc_lightsaft", "tfc_lightsaft_v2", "tfc_rnn"]
)
def test_bfloat16_is_close(block: Any) -> None:
    # bfloat16 keeps 8 bits: 0.4% a rounding, and some of those add up.
    assert error(small_model(block=block), torch.bfloat16) < 0.06


def test_later_changes_of_the_network_do_not_reach_it() -> None:
    model = small_model()
    spec = random_spec(model)
    fast = specialise(model, [0, 1])
    before = fast(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(fast(spec), before)


def test_it_leaves_the_network_as_it_was() -> None:
    model = small_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    specialise(model, torch.tensor([2]))(random_spec(model))
    assert model.training
    assert model.network.conditioner.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_running_twice_gives_the_same() -> None:
    model = small_model(block="tfc_tdf")
    fast, spec = specialise(model, [0, 3, 2]), random_spec(model)
    assert torch.equal(fast(spec), fast(spec))


@pytest.mark.parametrize("block", ["tfc_tdf", "tfc_lasaft"])
def test_other_processors_give_the_same(block: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_types", tuple)
    assert error(small_model(block=block)) < 5e-6


def test_threads_can_share_it() -> None:
    model = small_model()
    fast = specialise(model, [0, 1])
    specs = [random_spec(model, seed=seed) for seed in range(8)]
    expected = [fast(spec) for spec in specs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fast, specs * 4))
    assert all(torch.equal(one, expected[number % 8]) for number, one in enumerate(found))


def test_another_size_follows_a_larger_one() -> None:
    model = small_model()
    fast, large, small = specialise(model, [2, 0]), random_spec(model, 3), random_spec(model, 1)
    expected = specialise(model, [2, 0])(small)
    fast(large)
    assert torch.equal(fast(small), expected)
