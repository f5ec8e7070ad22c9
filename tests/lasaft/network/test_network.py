"""Every block, modulation and framework runs, learns, and does what its option says."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from lasaft.config import Activation
from lasaft.errors import AudioError, ConfigError
from lasaft.network import blocks
from lasaft.network.blocks import ConvNorm, DenseConvolutions
from lasaft.network.model import LaSAFT
from lasaft.network.spectrogram import Spectrogram
from lasaft.parts import BLOCKS, MODULATIONS
from tests.helpers.models import random_spec, small_config, small_model


def learn_one_step(model: LaSAFT) -> None:
    """Forward and backward; every parameter must get a finite gradient."""
    model.train()
    spec = random_spec(model, batch=3)
    estimate = model.estimate(spec, torch.tensor([0, 2, 1]))
    assert estimate.shape == model.network_input(spec).shape
    (estimate * torch.randn_like(estimate)).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("spec_type", "spec_est_mode", "last_activation"),
    list(product(("complex", "magnitude"), ("mapping", "masking"), get_args(Activation))),
)
def test_framework_learns_and_separates(
    spec_type: Any, spec_est_mode: Any, last_activation: Any
) -> None:
    model = small_model(
        spec_type=spec_type, spec_est_mode=spec_est_mode, last_activation=last_activation
    )
    wave = torch.randn(2, 2, 15 * 32 + 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        separated = model(wave, torch.tensor([0, 3]))
    assert separated.shape == wave.shape
    assert separated.isfinite().all()
    learn_one_step(model)


@pytest.mark.parametrize(
    ("block", "modulation", "condition_to"),
    list(product(BLOCKS, tuple(MODULATIONS), ("encoder", "decoder", "full"))),
)
def test_block_with_modulation_learns_and_hears_its_condition(
    block: Any, modulation: Any, condition_to: Any
) -> None:
    model = small_model(block=block, modulation=modulation, condition_to=condition_to)
    spec = random_spec(model, batch=1).expand(2, -1, -1, -1)
    with torch.no_grad():
        first, second = model.estimate(spec, torch.tensor([0, 1]))
    conditioned = modulation != "none" or "saft" in block
    assert torch.equal(first, second) != conditioned
    learn_one_step(model)


@pytest.mark.parametrize(
    "options",
    [
        {"n_blocks": 1},
        {"n_blocks": 1, "condition_to": "full"},
        {"n_blocks": 1, "block": "tfc_tdf"},
        {"n_blocks": 5},
        {"bn_factor": None},
        {"bn_factor": None, "block": "tfc_lightsaft"},
        {"control_vector_type": "one_hot_mode"},
        {"control_vector_type": "multi_hot", "control_type": "per_block"},
        {"modulation": "film", "film_type": "simple", "condition_to": "full"},
        {"modulation": "film", "gamma_activation": "sigmoid", "beta_activation": "softmax"},
        {"pocm_norm": None, "control_n_layer": 1},
        {"control_n_layer": 6},
        {"kernel_size_t": 1, "kernel_size_f": 5},
        {"t_down_layers": (), "f_down_layers": ()},
        {"n_blocks": 5, "t_down_layers": (1,), "f_down_layers": (0,)},
        {"n_internal_layers": 1},
        {"input_channels": 2},
        {"input_channels": 1, "spec_type": "magnitude"},
        {"sources": ("voice", "rest", "noise")},
        {"n_fft": 60, "hop_length": 30, "n_blocks": 3},
    ],
    ids=str,
)
def test_unusual_network_learns(options: dict[str, Any]) -> None:
    learn_one_step(small_model(**options))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_mixture_of_options_learns(data: st.DataObject) -> None:
    choose = {
        "block": tuple(BLOCKS),
        "modulation": tuple(MODULATIONS),
        "condition_to": ("encoder", "decoder", "full"),
        "control_vector_type": ("embedding", "one_hot_mode", "multi_hot"),
        "control_type": ("dense", "per_block"),
        "control_n_layer": (1, 2, 3, 4),
        "film_type": ("simple", "complex"),
        "pocm_type": ("naive", "matmul"),
        "pocm_norm": ("batch_norm", None),
        "n_blocks": (1, 3, 5),
        "n_internal_layers": (1, 2, 3),
        "internal_channels": (1, 3),
        "kernel_size_t": (1, 3),
        "kernel_size_f": (1, 3, 5),
        "bn_factor": (None, 1, 4, 64),
        "num_tdfs": (1, 3),
        "query_listen": (False, True),
        "key_listen": (False, True),
        "num_layers_rnn": (1, 2),
        "spec_type": ("complex", "magnitude"),
        "spec_est_mode": ("mapping", "masking"),
        "tfc_tdf_activation": ("relu", "leaky_relu", "softmax"),
        "first_conv_activation": ("identity", "sigmoid"),
        "tfc_tdf_bias": (False, True),
        "norm": ("bn", "gn"),
        "scale_activation": ("identity", "leaky_relu"),
    }
    options = {name: data.draw(st.sampled_from(values), name) for name, values in choose.items()}
    levels = list(range(options["n_blocks"] // 2))
    for name in ("t_down_layers", "f_down_layers"):
        subsets = st.lists(st.sampled_from(levels), unique=True) if levels else st.just([])
        options[name] = data.draw(st.none() | subsets.map(tuple), name)
    learn_one_step(small_model(**options))


@pytest.mark.parametrize(("kernel", "reach"), [((5, 1), (4, 0)), ((1, 5), (0, 4))])
def test_kernel_sizes_are_on_their_own_axes(kernel: tuple[int, int], reach: Any) -> None:
    dense = DenseConvolutions((1,), 2, 2, kernel, "identity").eval()
    impulse = torch.zeros(1, 1, 15, 15)
    impulse[..., 7, 7] = 1.0
    with torch.no_grad():
        change = (dense(impulse) - dense(torch.zeros_like(impulse))).abs().amax((0, 1))
    frames, bins = (change > 0).nonzero().T
    assert (int((frames - 7).abs().max()), int((bins - 7).abs().max())) == reach


@pytest.mark.parametrize("sums", [("cpu",), ()])
@torch.no_grad()
def test_dense_convolutions_equal_those_over_concatenations(
    sums: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SUMS_ON", sums)
    dense = DenseConvolutions((3, 2), 4, 4, (3, 5), "relu").eval().double()
    inputs = torch.randn(2, 3, 6, 7).double(), torch.randn(2, 2, 6, 7).double()
    seen = torch.cat(inputs, dim=1)
    for layer in dense.layers.children():
        new = layer(seen)
        seen = torch.cat((new, seen), dim=1)
    assert (dense(*inputs) - seen[:, :4]).abs().max() < 1e-12


def test_autocast_casts_a_weight_once_whatever_it_is_split_into() -> None:
    dense = DenseConvolutions((3, 2), 4, 3, (3, 3), "identity").eval()
    inputs = torch.randn(2, 3, 6, 7), torch.randn(2, 2, 6, 7)
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        torch.autocast("cpu", torch.bfloat16),
    ):
        output = dense(*inputs)
    output.float().square().sum().backward()
    # To bfloat16: for every layer its weight, its bias, and each of the inputs.
    casts = sum(one.count for one in profile.key_averages() if one.key == "aten::_to_copy")
    assert casts <= 3 * 4
    for layer in dense.layers.children():
        assert isinstance(layer, ConvNorm)
        gradient = layer.conv.weight.grad
        assert gradient is not None
        assert gradient.dtype == torch.float32
        assert gradient.abs().sum() > 0


@torch.no_grad()
def test_naive_pocm_is_matmul_with_the_matrix_transposed() -> None:
    matmul, naive = (small_model(pocm_type=kind) for kind in ("matmul", "naive"))
    state = matmul.state_dict()
    channels = matmul.config.internal_channels
    for key in ("linear.weight", "linear.bias", "norm.running_mean", "norm.running_var"):
        name = f"network.conditioner.gamma.{key}"
        numbers = state[name].unflatten(0, (-1, channels, channels))
        state[name] = numbers.transpose(1, 2).flatten(0, 2)
    naive.load_state_dict(state)
    spec, condition = random_spec(matmul), torch.tensor([1, 3])
    expected = matmul.estimate(spec, condition)
    assert (naive.estimate(spec, condition) - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("pocm_type", ["naive", "matmul"])
@torch.no_grad()
def test_items_of_a_batch_do_not_touch_each_other(pocm_type: Any) -> None:
    model = small_model(pocm_type=pocm_type)
    spec, condition = random_spec(model, batch=4), torch.arange(4)
    together = model.estimate(spec, condition)
    alone = torch.cat([model.estimate(spec[i : i + 1], condition[i : i + 1]) for i in range(4)])
    assert (together - alone).abs().max() < 1e-6 * alone.abs().max()


@torch.no_grad()
def test_a_set_is_the_sum_of_its_sources_vectors_and_one_source_is_its_embedding() -> None:
    single, sets = small_model(), small_model(control_vector_type="multi_hot")
    assert single.state_dict().keys() == sets.state_dict().keys()  # equal, drawn by one seed
    spec, rows = random_spec(single, batch=4), torch.eye(4)
    wanted = single.estimate(spec, torch.arange(4))
    assert torch.equal(sets.estimate(spec, torch.arange(4)), wanted)
    assert torch.equal(sets.estimate(spec, rows), wanted)
    vector = sets.network.conditioner(torch.tensor([[1.0, 0, 1, 0]])).vector
    first, _, third, _ = single.network.conditioner(torch.arange(4)).vector
    assert torch.equal(vector[0], first + third)
    with pytest.raises(ConfigError, match="condition: got sets of sources, allowed: indices"):
        single.estimate(spec, rows)


def test_training_on_one_item_says_why_it_cannot() -> None:
    model = small_model().train()
    with pytest.raises(ConfigError, match="batch_size: got 1 item a process, allowed: 2 or more"):
        model.estimate(random_spec(model, batch=1), torch.tensor([0]))


def test_training_on_one_item_works_without_batch_statistics_of_conditions() -> None:
    model = small_model(control_n_layer=2, pocm_norm=None).train()
    model.estimate(random_spec(model, batch=1), torch.tensor([0])).mean().backward()


def test_frames_that_do_not_halve_are_refused() -> None:
    model = small_model(n_blocks=5)
    with pytest.raises(ConfigError, match="num_frame: got 18 frames, allowed: a multiple of 4"):
        model.estimate(torch.zeros(1, 4, 18, 33), torch.tensor([0]))


@pytest.mark.parametrize(
    ("activation", "law", "kaiming"),
    [
        ("identity", None, False),
        ("relu", None, True),
        ("identity", "kaiming", True),
        ("relu", "xavier", False),
    ],
)
def test_initial_weights_follow_the_law_that_is_asked_for_or_suits_the_last_activation(
    activation: Any, law: Any, kaiming: bool
) -> None:
    torch.manual_seed(0)
    options = {"last_activation": activation, "initializer": law}
    model = LaSAFT(small_config(n_fft=1024, hop_length=512, **options))
    weight = model.network.get_parameter("middle.frequency.tdf.1.linear.weight")
    outputs, inputs = weight.shape
    expected = (2 / inputs) if kaiming else 2 / (inputs + outputs)
    # 48 thousand draws: their variance is 0.6% uncertain.
    assert weight.var().item() == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("length", [33, 64, 480, 501])
def test_inverse_transform_gives_the_waveform_back(length: int) -> None:
    transform = Spectrogram(64, 16)
    wave = torch.randn(2, 2, length, dtype=torch.float64)
    restored = transform.istft(transform.stft(wave), length)
    assert (restored - wave).abs().max() < 1e-12


def test_magnitude_with_its_own_phase_is_the_spectrogram() -> None:
    transform = Spectrogram(64, 16)
    spec = torch.randn(2, 4, 5, 33, dtype=torch.float64)
    spec[:, :, 0] = 0.0
    restored = transform.with_phase(transform.magnitude(spec), spec)
    assert (restored - spec).abs().max() < 1e-12


def test_audio_too_short_to_pad_is_refused() -> None:
    with pytest.raises(AudioError, match="got 32 samples, allowed: more than 32"):
        Spectrogram(64, 16).stft(torch.zeros(1, 1, 32))


def test_the_shapes_in_signatures_are_checked_while_tests_run() -> None:
    model = small_model()
    with pytest.raises(TypeCheckError, match="mixture_spec"):
        model.estimate(torch.zeros(2, 4, 33), torch.tensor([0, 1]))
    with pytest.raises(TypeCheckError, match="condition"):
        model.estimate(random_spec(model), torch.tensor([0]))
