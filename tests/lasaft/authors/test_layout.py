"""Weights and hyper-parameters in the authors' layout."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lasaft.authors.layout import authors_name, config_from_authors, from_authors_state_dict
from lasaft.config import variant_name
from lasaft.errors import CheckpointError
from lasaft.network.model import LaSAFT
from tests.helpers.models import small_model
from tests.helpers.parity import Fixture

FIXTURE = Fixture("net_gpocm_lasaft_decoder")
CONFIG = config_from_authors(FIXTURE.meta["config"], variant=FIXTURE.meta["variant"])


def problems(state: dict[str, torch.Tensor]) -> str:
    with pytest.raises(CheckpointError) as caught:
        from_authors_state_dict(state, CONFIG)
    return str(caught.value)


def test_keys_that_do_not_fit_are_listed_by_name() -> None:
    state = dict(FIXTURE.state)
    state["spec2spec.extra.weight"] = torch.zeros(1)
    del state["spec2spec.mid_block.keys"]
    state["spec2spec.last_conv.0.bias"] = torch.zeros(9)
    message = problems(state)
    assert "(3 keys)" in message
    assert "missing: mid_block.keys" in message
    assert "unexpected: extra.weight" in message
    assert "wrong shape: last_conv.0.bias is [9], the config asks for [4]" in message


def test_foreign_window_is_noticed() -> None:
    state = {**FIXTURE.state, "stft.stft.window": torch.ones(64)}
    assert "stft.stft.window is not a Hann window" in problems(state)
    state["stft.stft.window"] = torch.hann_window(64).long()
    assert "stft.stft.window is not a Hann window" in problems(state)
    state["stft.stft.window"] = torch.hann_window(32)
    assert "stft.stft.window is [32], n_fft asks for [64]" in problems(state)


def test_older_prefix_is_understood() -> None:
    older = {
        key.replace("spec2spec.", "conditional_spec2spec."): value
        for key, value in FIXTURE.state.items()
    }
    expected = from_authors_state_dict(FIXTURE.state, CONFIG)
    found = from_authors_state_dict(older, CONFIG)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_trained_embedding_is_not_taken_for_one_hot() -> None:
    fixture = Fixture("net_film_onehot")
    config = config_from_authors(fixture.meta["config"], fixture.state)
    state = {**fixture.state, "spec2spec.embedding.weight": torch.ones(4, 4)}
    with pytest.raises(CheckpointError, match="not the identity of one_hot_mode"):
        from_authors_state_dict(state, config)


@pytest.mark.parametrize("options", [{}, {"block": "tfc"}, {"control_n_layer": 6}, {"n_blocks": 5}])
def test_every_part_has_a_name_of_its_own(options: dict[str, Any]) -> None:
    model = small_model(**options)
    keys = list(model.network.state_dict())
    names = {authors_name(key, model.config) for key in keys}
    assert len(names) == len(keys)
    assert not names & set(keys) - {"embedding.weight"}


def test_other_hyper_parameters_are_left_out() -> None:
    extra = {**FIXTURE.meta["config"], "tif_init_mode": None, "seed": 2020, "model": "lasaft_net"}
    assert config_from_authors(extra) == CONFIG


def test_texts_for_lists_and_none_are_understood() -> None:
    options = {
        **FIXTURE.meta["config"],
        "n_blocks": 5,
        "t_down_layers": "[0, 1]",
        "f_down_layers": "[0]",
    }
    config = config_from_authors({**options, "pocm_norm": "None"}, variant="lasaft_net")
    assert config.t_down_layers == (0, 1)
    # Their networks halve the bins on every level, whatever this option says.
    assert config.f_down_layers is None
    assert config.pocm_norm is None


def test_other_numbers_of_sources_get_names() -> None:
    config = config_from_authors({"control_input_dim": 3}, variant="CUNET_TFC_FiLM")
    assert config.sources == ("source_1", "source_2", "source_3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nobody"}, "model: got 'nobody'"),
        ({"model": "lasaft_net", "n_blocks": 4}, "n_blocks: got 4"),
        ({"model": "lasaft_net", "dk": "many"}, "dk .*got 'many'"),
        ({"model": "lasaft_net", "t_down_layers": "[a]"}, r"t_down_layers: got '\[a\]'"),
    ],
)
def test_bad_hyper_parameter_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_from_authors(options)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(CheckpointError, match="none of the authors' conditioned U-Nets"):
        config_from_authors({}, {"conv.weight": torch.zeros(1)})


def _theirs(model: LaSAFT, **options: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Hyper-parameters and weights of one of our networks as their code would save them."""
    values = model.config.model_dump()
    hyper = {k: v for k, v in values.items() if k not in ("sources", "block", "modulation")}
    state = {
        "spec2spec." + authors_name(key, model.config): value
        for key, value in model.network.state_dict().items()
    }
    return {**hyper, "model": variant_name(model.config), **options}, state


@pytest.mark.parametrize("levels", ["[0]", "[]", "[0, 1]"])
@pytest.mark.parametrize("obeyed", [True, False])
def test_the_weights_tell_whether_f_down_layers_was_obeyed(levels: str, obeyed: bool) -> None:
    wanted = tuple(json.loads(levels)) if obeyed else None
    model = small_model(n_blocks=5, f_down_layers=wanted)
    hyper, state = _theirs(model, f_down_layers=levels)
    config = config_from_authors(hyper, state)
    assert config.f_down_layers == (None if wanted in (None, (0, 1)) else wanted)
    found = from_authors_state_dict(state, config)
    assert all(torch.equal(found[f"network.{k}"], v) for k, v in model.network.state_dict().items())


@pytest.mark.parametrize("block", ["tfc_tdf", "tfc_lasaft"])
@pytest.mark.parametrize("condition_to", ["encoder", "decoder"])
def test_a_generator_that_steers_no_block_is_left_out(block: str, condition_to: str) -> None:
    model = small_model(n_blocks=1, block=block, condition_to=condition_to)
    hyper, state = _theirs(model)
    idle = {"spec2spec.condition_generator.linear_gamma.0.weight": torch.zeros(0, 8)}
    idle |= {"spec2spec.condition_generator.dense_control_block.linear.0.bias": torch.zeros(8)}
    idle |= {"spec2spec.embedding.weight": torch.zeros(4, 8)} if block == "tfc_tdf" else {}
    found = from_authors_state_dict({**state, **idle}, config_from_authors(hyper, state))
    assert found.keys() == model.state_dict().keys()


def test_a_window_in_half_precision_is_a_hann_window() -> None:
    state = {**FIXTURE.state, "stft.stft.window": torch.hann_window(64).half()}
    assert from_authors_state_dict(state, CONFIG)
