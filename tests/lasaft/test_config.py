"""The settings of a network: names, rules between options, and what has no effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lasaft.config import VARIANTS, ModelConfig, variant_name
from lasaft.idle_options import without_effect
from lasaft.network.model import LaSAFT
from lasaft.parts import BLOCKS, MODULATIONS
from tests.helpers.models import random_spec, small_config, small_model, window_samples

# From the reference implementation, at its command's settings.
PARAMETERS = {
    "CUNET_TFC_FiLM": 720_676,
    "CUNET_TFC_FiLM_TDF": 1_069_508,
    "CUNET_TFC_FiLM_LaSAFT": 7_998_436,
    "CUNET_TFC_GPoCM": 1_146_268,
    "CUNET_TFC_GPoCM_TDF": 1_495_100,
    "CUNET_TFC_GPoCM_LaSAFT": 8_424_028,
    "CUNET_TFC_GPoCM_LightSAFT": 2_374_236,
    "Dense_CUNet_TFC_FiLM": 720_676,
    "Dense_CUNet_TFC_GPoCM": 1_146_268,
    "lasaft_net": 8_424_028,
    "lightsaft_net": 2_374_236,
    "lasaft_net_large": 31_541_908,
    # Added up over the layers that the authors' constructors make.
    "lasaft_net_v2": 2_468_554,
    "lasaft_net_v2_light": 1_910_270,
    "lasaft_net_v2_large": 7_900_700,
}
WITH_BIAS = {"CUNET_TFC_GPoCM_LaSAFT": 8_447_692, "CUNET_TFC_FiLM_TDF": 1_073_460}


def parameters(config: ModelConfig) -> int:
    return sum(parameter.numel() for parameter in LaSAFT(config).parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_is_as_large_as_the_reference(name: str) -> None:
    assert parameters(ModelConfig(**VARIANTS[name])) == PARAMETERS[name]


@pytest.mark.parametrize("name", WITH_BIAS)
def test_biases_are_where_the_reference_has_them(name: str) -> None:
    assert parameters(ModelConfig(**VARIANTS[name], tfc_tdf_bias=True)) == WITH_BIAS[name]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"control_n_layer": 1}, 8.00),
        ({"control_n_layer": 6}, 10.49),
        ({"condition_to": "full"}, 9.06),
        ({"num_tdfs": 1}, 1.5),
        ({"num_tdfs": 16}, 48.3),
        ({"n_blocks": 3}, 6.68),
        ({"kernel_size_t": 5, "kernel_size_f": 5}, 9.55),
    ],
)
def test_option_changes_the_size_as_in_the_reference(options: dict[str, Any], count: float) -> None:
    size = parameters(ModelConfig(tfc_tdf_bias=True, **options)) / 1e6
    assert size == pytest.approx(count, abs=0.051 if count in (1.5, 48.3) else 0.0051)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("CUNET")])
def test_variant_name_is_the_readme_s(name: str) -> None:
    assert variant_name(ModelConfig(**VARIANTS[name])) == name


def test_other_combinations_have_names_of_their_own() -> None:
    names = {
        variant_name(ModelConfig(block=block, modulation=modulation))
        for block in BLOCKS
        for modulation in MODULATIONS
    }
    assert len(names) == len(BLOCKS) * len(MODULATIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_blocks": 6}, "n_blocks: got 6, allowed: an odd number"),
        ({"num_frame": 100}, "num_frame: got 100, allowed: a multiple of 8"),
        ({"n_blocks": 9, "num_frame": 120}, "num_frame: got 120, allowed: a multiple of 16"),
        ({"n_fft": 2047}, "n_fft: got 2047, allowed: an even number"),
        ({"n_fft": 2044}, "n_fft: got 2044, allowed: a multiple of 16"),
        ({"hop_length": 1025}, "hop_length: got 1025, allowed: at most half of n_fft (1024)"),
        ({"kernel_size_t": 2}, "kernel_size_t: got 2, allowed: an odd number"),
        ({"kernel_size_f": 4}, "kernel_size_f: got 4, allowed: an odd number"),
        ({"t_down_layers": (3,)}, "t_down_layers: got [3], allowed: different levels from 0 to 2"),
        ({"f_down_layers": (1, 1)}, "f_down_layers: got [1, 1], allowed: different levels"),
        ({"input_channels": 3}, "input_channels: got 3, allowed with spec_type complex: 2 (mono)"),
        ({"spec_type": "magnitude", "input_channels": 4}, "allowed with spec_type magnitude: 1"),
        ({"control_input_dim": 5}, "control_input_dim: got 5, allowed: the number of sources, 4"),
        ({"sources": ("a", "A")}, "sources: got 'a' more than once"),
        ({"sources": ("../a",)}, "sources: got '../a', allowed: a name that can be a file name"),
        ({"sources": ("Mixture",)}, "sources: got 'Mixture', which is reserved"),
        ({"last_activation": "elu"}, "last_activation"),
        ({"dk": True}, "dk"),
        ({"n_layers": 5}, "n_layers"),
    ],
)
def test_bad_option_is_rejected_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig(**options)
    assert message in str(caught.value)


def test_every_problem_is_listed() -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig(n_blocks=6, kernel_size_t=2, hop_length=2048, control_input_dim=3)
    for option in ("n_blocks", "kernel_size_t", "hop_length", "control_input_dim"):
        assert f"{option}: got" in str(caught.value)


def test_frames_need_to_divide_only_where_time_is_halved() -> None:
    assert ModelConfig(num_frame=99, t_down_layers=()).time_reduction == 1
    assert ModelConfig(num_frame=99, block="tdc").time_reduction == 1
    assert ModelConfig(num_frame=98, t_down_layers=(2,)).time_reduction == 2


@pytest.mark.parametrize(
    ("spec_type", "input_channels", "audio", "net"),
    [
        ("complex", None, 2, 4),
        ("complex", 2, 1, 2),
        ("magnitude", None, 2, 2),
        ("magnitude", 1, 1, 1),
    ],
)
def test_channels(spec_type: Any, input_channels: int | None, audio: int, net: int) -> None:
    config = ModelConfig(spec_type=spec_type, input_channels=input_channels)
    assert (config.audio_channels, config.resolved_input_channels) == (audio, net)
    assert config.spec_channels == 2 * audio


@pytest.mark.parametrize(
    ("spec_type", "spec_est_mode", "expected"),
    [
        ("complex", "mapping", "identity"),
        ("magnitude", "mapping", "identity"),
        ("complex", "masking", "tanh"),
        ("magnitude", "masking", "sigmoid"),
    ],
)
def test_last_activation_suits_the_framework(
    spec_type: Any, spec_est_mode: Any, expected: str
) -> None:
    config = ModelConfig(spec_type=spec_type, spec_est_mode=spec_est_mode)
    assert config.resolved_last_activation == expected


def test_chunk_and_trim_are_the_reference_s() -> None:
    config = ModelConfig()
    assert window_samples(config) == 130_048
    assert config.trim_frames * config.hop_length == 5_120


# For each option that only some networks use, a value that differs from the small config's.
OTHER: dict[str, Any] = {
    "n_internal_layers": 1,
    "kernel_size_t": 5,
    "kernel_size_f": 5,
    "tfc_activation": "tanh",
    "tfc_tdf_activation": "tanh",
    "tdf_activation": "tanh",
    "tdc_activation": "tanh",
    "bn_factor": None,
    "min_bn_units": 16,
    "tfc_tdf_bias": True,
    "bias": True,
    "num_tdfs": 2,
    "dk": 4,
    "condition_to": "full",
    "control_vector_type": "one_hot_mode",
    "embedding_dim": 8,
    "control_n_layer": 2,
    "film_type": "simple",
    "gamma_activation": "tanh",
    "beta_activation": "tanh",
    "pocm_type": "naive",
    "pocm_norm": None,
}
BASES: list[dict[str, Any]] = [
    {"block": "tfc", "modulation": "none"},
    {"block": "tfc", "modulation": "film"},
    {"block": "tfc", "modulation": "pocm"},
    {"block": "tfc_tdf", "modulation": "gpocm"},
    {"block": "tfc_tdf", "modulation": "gpocm", "bn_factor": None},
    {"block": "tfc_lasaft", "modulation": "none"},
    {"block": "tfc_lasaft", "modulation": "film", "control_vector_type": "one_hot_mode"},
    {"block": "tfc_lightsaft", "modulation": "gpocm"},
    {"block": "tdf", "modulation": "film"},
    {"block": "tdc", "modulation": "gpocm"},
    {"block": "tfc_tdf", "modulation": "film", "n_blocks": 1, "condition_to": "encoder"},
]


def same_network(ours: LaSAFT, other: LaSAFT) -> bool:
    """Equal weights (drawn with one seed) and equal outputs."""
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (ours, other)]
    if shapes[0] != shapes[1]:
        return False
    spec, condition = random_spec(ours), torch.tensor([0, 2])
    with torch.no_grad():
        return torch.equal(ours.estimate(spec, condition), other.estimate(spec, condition))


@pytest.mark.parametrize("base", BASES, ids=lambda base: "-".join(map(str, base.values())))
def test_exactly_the_options_said_to_have_no_effect_have_none(base: dict[str, Any]) -> None:
    network = small_model(**base)
    reported = without_effect(small_config(**base))
    for option, value in OTHER.items():
        if base.get(option) == value:
            continue
        changed = small_model(**{**base, option: value})
        unchanged = same_network(network, changed)
        # With one block, condition_to full is the one value that reaches it.
        if option == "condition_to" and base.get("n_blocks") == 1:
            assert not unchanged
            continue
        assert unchanged == (option in reported), option


def test_options_that_matter_to_every_network_do() -> None:
    network = small_model()
    for option, value in {
        "n_blocks": 5,
        "internal_channels": 6,
        "t_down_layers": (),
        "f_down_layers": (),
        "first_conv_activation": "tanh",
        "last_activation": "tanh",
        "spec_est_mode": "masking",
        "sources": ("a", "b", "c"),
        "modulation": "film",
        "block": "tfc",
    }.items():
        assert not same_network(network, small_model(**{option: value})), option
