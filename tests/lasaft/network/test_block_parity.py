"""Blocks of the authors' earlier U-Nets give the reference's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lasaft.authors.layout import authors_name
from lasaft.config import ModelConfig
from lasaft.network.blocks import Block, ConvNorm, DenseConvolutions
from lasaft.network.generator import BlockGenerator
from lasaft.network.modulations import Condition, modulation_class
from tests.helpers.parity import Fixture, fixture_names, relative_error

NOBODY = Condition()


def load(module: nn.Module, state: dict[str, Tensor], names: dict[str, str]) -> nn.Module:
    """Load weights after renaming the beginnings of their keys."""
    renamed = {}
    for key, value in state.items():
        old = max((name for name in names if key.startswith(name)), key=len)
        renamed[names[old] + key.removeprefix(old)] = value
    module.load_state_dict(renamed)
    return module.eval()


def on_frames(fixture: Fixture) -> dict[str, Tensor]:
    """The weights, where theirs is a convolution of one dimension on frames in a row."""
    return {
        key: value.unsqueeze(2) if value.dim() == 3 else value
        for key, value in fixture.state.items()
    }


def dense_names(theirs: str, ours: str, layers: int) -> dict[str, str]:
    parts = ("conv", "norm")
    return {
        f"{theirs}H.{layer}.{place}": f"{ours}layers.{layer}.{part}"
        for layer in range(layers)
        for place, part in enumerate(parts)
    }


def tdf_names(theirs: str, ours: str) -> dict[str, str]:
    places = {0: "0.linear", 1: "0.norm", 3: "1.linear", 4: "1.norm"}
    return {f"{theirs}.{place}": f"{ours}.{name}" for place, name in places.items()}


@torch.no_grad()
def test_tdc_equals_the_reference() -> None:
    fixture = Fixture("block_tdc")
    args = fixture.meta["args"]
    layers = args["num_layers"]
    tdc = DenseConvolutions((args["in_channels"],), args["gr"], layers, (1, args["kf"]), "relu")
    load(tdc, on_frames(fixture), dense_names("", "", layers))
    assert relative_error(tdc(fixture["x"]), fixture["y"]) < 1e-6


@torch.no_grad()
def test_tdf_equals_the_reference() -> None:
    fixture = Fixture("block_tif")
    args = fixture.meta["args"]
    config = ModelConfig(
        block="tdf",
        modulation="none",
        internal_channels=args["channels"],
        bn_factor=args["bn_factor"],
        min_bn_units=args["min_bn_units"],
        bias=args["bias"],
    )
    block = Block(config, (args["channels"],), args["f"], 0)
    load(block, fixture.state, tdf_names("tif", "mixing.tdf"))
    assert relative_error(block((fixture["x"],), NOBODY), fixture["y"]) < 1e-6


@torch.no_grad()
def test_tfc_tdf_with_different_kernel_sizes_equals_the_reference() -> None:
    fixture = Fixture("block_tfc_tif")
    args = fixture.meta["args"]
    config = ModelConfig(
        block="tfc_tdf",
        modulation="none",
        internal_channels=args["gr"],
        n_internal_layers=args["num_layers"],
        kernel_size_t=args["kt"],
        kernel_size_f=args["kf"],
        bn_factor=args["bn_factor"],
        min_bn_units=args["min_bn_units"],
        tfc_tdf_bias=args["bias"],
    )
    block = Block(config, (args["in_channels"],), args["f"], 0)
    names = dense_names("tfc.", "mixing.", args["num_layers"])
    load(block, fixture.state, names | tdf_names("tif.tif", "frequency.tdf"))
    assert relative_error(block((fixture["x"],), NOBODY), fixture["y"]) < 1e-6


@pytest.mark.parametrize("kind", ["tfc", "tdc"])
@torch.no_grad()
def test_recurrent_blocks_equal_the_reference(kind: str) -> None:
    fixture = Fixture(f"block_{kind}_rnn")
    args = fixture.meta["args"]
    theirs, transform = ("tfc", "tdf") if kind == "tfc" else ("tic", "tif")
    layers = args[f"num_layers_{theirs}"]
    config = ModelConfig.model_validate(
        {
            "block": f"{kind}_rnn",
            "modulation": "none",
            "internal_channels": args["gr"],
            "n_internal_layers": layers,
            "kernel_size_f": args["kf"],
            "bn_factor": args[f"bn_factor_{transform}"],
            "bn_factor_rnn": args["bn_factor_rnn"],
            "min_bn_units_rnn": args["min_bn_units_rnn"],
            "num_layers_rnn": args["num_layers_rnn"],
            "tfc_tdf_bias": True,
        }
    )
    block = Block(config, (args["in_channels"],), args["f"], 0)
    names = dense_names(f"{theirs}.", "mixing.", layers)
    names |= tdf_names(f"{transform}_f1_to_f2.{transform}", "frequency.tdf")
    load(block, on_frames(fixture), names | {"bn": "frequency.norm", "rnn": "frequency.rnn"})
    assert relative_error(block((fixture["x"],), NOBODY), fixture["y"]) < 1e-6


@pytest.mark.parametrize("name", fixture_names("block_v2_*"))
@torch.no_grad()
def test_blocks_of_the_second_networks_equal_the_reference(name: str) -> None:
    fixture = Fixture(name)
    args = fixture.meta["args"]
    light = "light" in name
    config = ModelConfig.model_validate(
        {
            "block": "tfc_lightsaft_v2" if light else "tfc_lasaft_v2",
            "modulation": "gpocm" if light else "none",
            "n_blocks": 1,
            "condition_to": "full",
            "control_type": "per_block",
            "internal_channels": args["gr"],
            "n_internal_layers": args["num_layers"],
            "embedding_dim": args["condition_dim"],
            "tfc_tdf_bias": args["bias"],
            "query_listen": args.get("query_listen", False),
            **{key: args[key] for key in ("bn_factor", "min_bn_units", "num_tdfs", "dk")},
            **{key: args[key] for key in ("key_listen", "norm")},
        }
    )
    parts: dict[str, nn.Module] = {"middle": Block(config, (args["in_channels"],), args["f"], 0)}
    condition = Condition(fixture["condition"])
    if light:
        numbers = modulation_class(config.modulation).numbers(config, args["f"])
        parts["conditioner.generators.0"] = BlockGenerator(args["condition_dim"], numbers)
    for ours, part in parts.items():
        theirs = {
            key: authors_name(f"{ours}.{key}", config).removeprefix("mid_block.")
            for key in part.state_dict()
        }
        values = {key: fixture.state.pop(theirs[key]) for key in theirs}
        part.load_state_dict(
            {k: v[0, 0] if v.shape[:2] == (1, 1) else v for k, v in values.items()}
        )
        part.eval()
    assert not fixture.state
    if light:
        gamma, beta = parts["conditioner.generators.0"](condition.vector)
        condition = condition._replace(gamma=(gamma,), beta=(beta,))
    assert relative_error(parts["middle"]((fixture["x"],), condition), fixture["y"]) < 1e-6


@pytest.mark.parametrize("mode", ["down", "up"])
@torch.no_grad()
def test_frequency_resampling_equals_the_reference(mode: str) -> None:
    fixture = Fixture(f"block_tdc_sampling_{mode}")
    channels = fixture.meta["args"]["in_channels"]
    kind = nn.Conv2d if mode == "down" else nn.ConvTranspose2d
    module = ConvNorm(kind(channels, channels, (1, 2), (1, 2)))
    load(module, on_frames(fixture), {"conv": "conv", "bn": "norm"})
    assert relative_error(module(fixture["x"]), fixture["y"]) < 1e-6
