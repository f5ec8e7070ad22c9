"""Translates the key names and hyper-parameters of the authors' own code into ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from lasaft.checkpoint import wanted_state_dict
from lasaft.config import MUSDB18_SOURCES, VARIANTS, ModelConfig
from lasaft.errors import CheckpointError
from lasaft.parts import V2_BLOCKS

_WINDOW, _SETS = "stft.stft.window", "embedding.linear.weight"
_MOST_SOURCES = 1000
_LISTED = 100  # problems in a message
# Their class attribute was renamed once.
_PREFIXES = ("spec2spec.", "conditional_spec2spec.")
# Our name of a part -> theirs, tried in order; dots in ours are literal.
_RENAMES = (
    (r"first\.conv", "first_conv.0"),
    (r"first\.norm", "first_conv.1"),
    (r"last", "last_conv.0"),
    (r"downs\.(\d+)\.conv", r"downsamplings.\1.0"),
    (r"downs\.(\d+)\.norm", r"downsamplings.\1.1"),
    (r"ups\.(\d+)\.conv", r"upsamplings.\1.0"),
    (r"ups\.(\d+)\.norm", r"upsamplings.\1.1"),
    (r"conditioner\.embedding", "embedding"),
    (r"conditioner\.(gamma|beta)\.linear", r"condition_generator.linear_\1.0"),
    (r"conditioner\.(gamma|beta)\.norm", r"condition_generator.linear_\1.2"),
)
_BLOCK_RENAMES = (
    (r"mixing\.layers\.(\d+)\.conv", r"{dense}H.\1.0"),
    (r"mixing\.layers\.(\d+)\.norm", r"{dense}H.\1.1"),
    (r"frequency\.tdf\.0\.linear", "{tdf}.tdf.0"),
    (r"frequency\.tdf\.0\.norm", "{tdf}.tdf.1"),
    (r"frequency\.tdf\.1\.linear", "{tdf}.tdf.3"),
    (r"frequency\.tdf\.1\.norm", "{tdf}.tdf.4"),
    (r"frequency\.squeeze\.linear", "LaSAFT_bn_layer.0"),
    (r"frequency\.squeeze\.norm", "LaSAFT_bn_layer.1"),
    (r"frequency\.expand\.linear", "LaSIFT.0"),
    (r"frequency\.expand\.norm", "LaSIFT.1"),
    (r"frequency\.attention\.query", "linear_query"),
    (r"frequency\.attention(?=\.keys$)", ""),
)
# Parts of v2 blocks that a condition reaches.
_V2_RENAMES = (
    (r"frequency\.before\.linear", "LaSAFT_bn_layer.0"),
    (r"frequency\.before\.norm", "LaSAFT_bn_layer.1"),
    (r"frequency\.before\.0\.linear", "tdfs.tdf.0"),
    (r"frequency\.before\.0\.norm", "tdfs.tdf.1"),
    (r"frequency\.before\.1\.linear", "tdfs.tdf.3"),
    (r"frequency\.before\.1\.norm", "tdfs.tdf.4"),
    (r"frequency\.after", "LaSIFT"),
    (r"frequency\.attention\.query\.norm", "linear_query.0"),
    (r"frequency\.attention\.query\.linear", "linear_query{query}"),
    (r"frequency\.attention\.query\.generator", "query_pocm_generator"),
    (r"frequency\.attention\.keys\.weight", "keys"),
    (r"frequency\.attention\.keys\.conv", "keys.0"),
    (r"frequency\.attention\.keys\.norm", "keys.1"),
    (r"frequency\.attention\.keys\.linear", "keys{key}"),
)
# Layers with weight norm, of which they made a generator.
_GENERATOR_RENAMES = (
    (r"generator\.hidden\.", "generator.0."),
    (r"generator\.output\.", "generator.2."),
    (r"parametrizations\.weight\.original0", "weight_g"),
    (r"parametrizations\.weight\.original1", "weight_v"),
)


def authors_name(key: str, config: ModelConfig) -> str:
    """Return the authors' name of one of our network's parameters or buffers.

    >>> authors_name("middle.mixing.layers.0.conv.weight", ModelConfig())
    'mid_block.tfc.H.0.0.weight'
    """
    control = re.match(r"conditioner\.control\.(\d+)\.(linear|norm)", key)
    if control:
        # Linear, ReLU; then Linear, ReLU, Dropout, BatchNorm each.
        layer = int(control[1])
        place = 0 if layer == 0 else 4 * layer - 2 + (3 if control[2] == "norm" else 0)
        return f"condition_generator.dense_control_block.linear.{place}{key[control.end() :]}"
    generator = re.match(r"conditioner\.generators\.(\d+)\.", key)
    if generator:
        modulated = [n for n, flag in enumerate(config.modulated_blocks) if flag]
        block = _block_name(modulated[int(generator[1])], config)
        return f"{block}.{_generated('pocm_generator.' + key[generator.end() :])}"
    block = re.match(r"(encoders\.\d+|middle|decoders\.\d+)\.", key)
    if block is None:
        return _rename(key, _RENAMES)
    theirs = block[1].replace("middle", "mid_block")
    names = [_block_name(number, config) for number in range(config.n_blocks)]
    v2 = config.block in V2_BLOCKS and config.attentive_blocks[names.index(theirs)]
    parts = {
        "dense": "" if config.block == "tfc" else "tfc.",
        "tdf": "tdfs" if config.block == "tfc_lasaft" else "tdf",
        "query": ".2" if config.query_listen else "",
        "key": ".3" if config.block == "tfc_lightsaft_v2" else ".2",
    }
    renames = (*(_V2_RENAMES if v2 else ()), *_BLOCK_RENAMES)
    found = tuple((ours, theirs.format(**parts)) for ours, theirs in renames)
    rest = _generated(_rename(key[block.end() :], found).lstrip("."))
    inner = f"{config.block.removesuffix('_v2')}." if v2 and config.modulation != "none" else ""
    return f"{theirs}.{inner}{rest}"


def _block_name(number: int, config: ModelConfig) -> str:
    """Return the authors' name of a block (encoders, middle, decoders)."""
    levels = config.levels
    if number == levels:
        return "mid_block"
    return f"encoders.{number}" if number < levels else f"decoders.{number - levels - 1}"


def _generated(key: str) -> str:
    for ours, theirs in _GENERATOR_RENAMES:
        key = re.sub(ours, theirs, key)
    return key


def _rename(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in renames:
        renamed, count = re.subn(rf"^{ours}(?=\.|$)", theirs, key)
        if count:
            return renamed
    return key


def from_authors_state_dict(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return the state dict of our network for one in the authors' layout.

    Raises:
        CheckpointError: keys are missing, left over or of another shape; lists them by name.
    """
    given = _without_prefix(state)
    if config.takes_sets and _SETS in given:  # a linear layer on ones and zeros
        given["embedding.weight"] = given.pop(_SETS).mT.contiguous()
    wanted = wanted_state_dict(config)
    problems: list[str] = []
    result: dict[str, Tensor] = {}
    for key, like in wanted.items():
        name = authors_name(key.removeprefix("network."), config)
        value = given.pop(name, None)
        if value is not None and value.shape == (1, 1, *like.shape):
            value = value[0, 0]  # keys of their second networks
        if value is None:
            problems.append(f"missing: {name}")
        elif value.shape != like.shape:
            problems.append(
                f"wrong shape: {name} is {list(value.shape)}, the config asks for "
                f"{list(like.shape)}"
            )
        else:
            result[key] = value
    problems += _constants(given, config)
    problems += [f"unexpected: {name}" for name in sorted(given)]
    if problems:
        more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        listed = "\n".join([*problems[:_LISTED], *more])
        raise CheckpointError(
            f"the weights do not fit the config ({len(problems)} keys):\n{listed}"
        )
    return result


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for key, value in state.items():
        # Saved out of DataParallel or DDP, every key has one more prefix.
        name = key.removeprefix("module.")
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
        result[name.removeprefix(prefix)] = value
    return result


def _constants(given: dict[str, Tensor], config: ModelConfig) -> list[str]:
    """Take out what we compute instead of storing, if it has the value we compute."""
    problems = []
    window = given.pop(_WINDOW, None)
    if window is not None and window.shape != (config.n_fft,):
        problems.append(
            f"wrong shape: {_WINDOW} is {list(window.shape)}, n_fft asks for [{config.n_fft}]"
        )
    elif window is not None:
        hann = torch.hann_window(config.n_fft)
        eps = torch.finfo(window.dtype).eps if window.is_floating_point() else 0
        if not eps or (window.float() - hann).abs().max() > max(1e-6, eps):
            problems.append(f"unexpected: {_WINDOW} is not a Hann window")
    if not any(config.modulated_blocks):
        # They make the generator even where condition_to names no block (n_blocks 1).
        idle = [name for name in given if name.startswith("condition_generator.")]
        idle += [] if config.attentive else ["embedding.weight"]
        for name in idle:
            given.pop(name, None)
    if config.control_vector_type == "one_hot_mode" and "embedding.weight" in given:
        embedding = given.pop("embedding.weight")
        identity = torch.eye(len(config.sources))
        if embedding.shape != identity.shape or not torch.equal(embedding.float(), identity):
            problems.append("unexpected: embedding.weight is not the identity of one_hot_mode")
    return problems


def config_from_authors(
    hyper_parameters: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
    variant: str | None = None,
) -> ModelConfig:
    """Return the config that the authors' hyper-parameters stand for.

    Options that are not about the network are left out. Their code never read f_down_layers; where
    it is given, the weights tell whether a repaired version of it did.

    Args:
        hyper_parameters: as in their checkpoint, flat.
        state: their weights, which tell the variant if nothing else does.
        variant: one of the README's names, if it is known.

    Raises:
        CheckpointError: the variant cannot be told, or a value is not allowed.
    """
    values = {
        key: _value(value)
        for key, value in hyper_parameters.items()
        if key in ModelConfig.model_fields and key not in ("f_down_layers", "sources")
    }
    name = variant or str(hyper_parameters.get("model"))
    if name in VARIANTS:
        values |= {key: VARIANTS[name][key] for key in ("modulation", "block")}
    elif state is not None:
        values |= _variant_of(state)
        if values["modulation"] == "film" and values.get("internal_channels") == 1:
            # With one channel FiLM's numbers and PoCM's matrices look alike.
            raise CheckpointError(
                f"model: got {name!r} in the hyper-parameters, and weights of one channel do not "
                f"tell; allowed: {', '.join(VARIANTS)}"
            )
    else:
        raise CheckpointError(
            f"model: got {name!r} in the hyper-parameters, allowed: {', '.join(VARIANTS)}"
        )
    if values.get("t_down_layers") is not None:
        values["t_down_layers"] = _levels(values["t_down_layers"])
    if state is not None and _value(hyper_parameters.get("f_down_layers")) is not None:
        values["f_down_layers"] = _halved_levels(state)
    count = values.get("control_input_dim") or len(MUSDB18_SOURCES)
    if type(count) is not int or not 1 <= count <= _MOST_SOURCES:
        raise CheckpointError(
            f"control_input_dim: got {count!r}, allowed: a number of sources up to {_MOST_SOURCES}"
        )
    if count != len(MUSDB18_SOURCES):
        values["sources"] = tuple(f"source_{number + 1}" for number in range(count))
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, problem['loc']))} {problem['msg']} (got {problem['input']!r})"
            if problem["loc"]
            else problem["msg"]
            for problem in error.errors()
        )
        raise CheckpointError(f"hyper-parameters: {found}") from error


def second_network(state: Mapping[str, Tensor]) -> ModelConfig:
    """Return the config of the authors' second network that these weights are of.

    Raises:
        CheckpointError: they are of none.
    """
    names = [name for name, row in VARIANTS.items() if row["block"] in V2_BLOCKS]
    vector = "multi_hot" if _SETS in _without_prefix(state) else "embedding"
    for config in (ModelConfig(**VARIANTS[name], control_vector_type=vector) for name in names):
        try:
            from_authors_state_dict(state, config)
        except CheckpointError:
            continue
        return config
    raise CheckpointError(
        "has no hyper_parameters, so its network is not known: its weights are of none of "
        f"{', '.join(names)}"
    )


def _value(value: Any) -> Any:
    return None if value in ("None", "none", "") else value


def _levels(value: Any) -> tuple[int, ...]:
    try:
        numbers = re.findall(r"[^\s,\[\]()]+", value) if isinstance(value, str) else value
        return tuple(int(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"t_down_layers: got {value!r}, allowed: a list of levels such as [0, 1]"
        ) from error


def _halved_levels(state: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return the levels whose down-convolutions halve the bins, None if all do."""
    kernels = {
        int(name.split(".")[1]): value.shape
        for name, value in _without_prefix(state).items()
        if re.fullmatch(r"downsamplings\.\d+\.0\.weight", name)
    }
    halved = tuple(sorted(level for level, shape in kernels.items() if shape[-1:] == (2,)))
    return None if len(halved) == len(kernels) else halved


def _variant_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Tell block and modulation from key names and from how many gammas are generated."""
    keys = _without_prefix(state)
    if "mid_block.H.0.0.weight" in keys:
        block, dense = "tfc", "mid_block.H.0.0.weight"
    else:
        dense = "mid_block.tfc.H.0.0.weight"
        parts = {"tdfs": "tfc_lasaft", "LaSIFT": "tfc_lightsaft", "tdf": "tfc_tdf"}
        found = (parts[part] for part in parts if any(f"mid_block.{part}." in key for key in keys))
        block = next(found, "")
    if not block or dense not in keys:
        raise CheckpointError("the weights are of none of the authors' conditioned U-Nets")
    gamma = keys.get("condition_generator.linear_gamma.0.weight")
    beta = keys.get("condition_generator.linear_beta.0.weight")
    if gamma is None or beta is None:
        return {"block": block, "modulation": "none"}
    # FiLM generates as many gammas as betas; PoCM a matrix of them for each vector of betas.
    return {"block": block, "modulation": "film" if gamma.shape == beta.shape else "gpocm"}
