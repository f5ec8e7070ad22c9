"""The settings of a network: options, their rules, names of networks.

The option names are those of the LaSAFT README. Nothing here imports torch, because ``--help`` and
the checks of a command line need this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lasaft.errors import Problem, refuse
from lasaft.parts import BLOCKS, MODULATIONS, V2_BLOCKS, BlockName, ModulationName

Activation = Literal["leaky_relu", "relu", "sigmoid", "tanh", "softmax", "identity"]
# More than any network has; beyond, building one would take all memory before a word is said.
_MOST = 65536
Positive = Annotated[int, Field(ge=1, le=_MOST)]

MUSDB18_SOURCES = ("vocals", "drums", "bass", "other")
# Their files stand beside the sources' files.
RESERVED_SOURCES = ("mixture", "linear_mixture", "accompaniment")


def whole_name(mode: str | None, domain: str) -> str | None:
    """Return the loss that a mode of raw_and_spec stands for; its domain may be left out.

    >>> whole_name("l1", "raw"), whole_name("spec_mse", "spec")
    ('raw_l1', 'spec_mse')
    """
    return f"{domain}_{mode}" if mode in ("l1", "l2", "mse") else mode


class Settings(BaseModel):
    """Base of every configuration class: strict types, no unknown keys, no changes afterwards."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def option(default: Any, description: str, *, role: str = "result", **limits: Any) -> Any:
    """Declare an option: its default, its line of help, its role and its range.

    Args:
        default: taken where nobody gives the option.
        description: one line, with the unit.
        role: what the option decides; the pipeline's ``config.roles`` says what follows from it.
        limits: ``ge``, ``gt``, ``le`` and the like, as in pydantic's ``Field``.
    """
    return Field(
        default=default, description=description, json_schema_extra={"role": role}, **limits
    )


class ModelConfig(Settings):
    """The network, its spectrogram, and what it separates."""

    sources: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)] = option(
        MUSDB18_SOURCES, "source names, in the order of their condition numbers", role="shards"
    )
    sample_rate: int = option(44100, "of the audio, in Hz", ge=1000, le=384000, role="shards")

    n_fft: int = option(2048, "STFT size in samples, even", ge=16, le=65536, role="shards")
    hop_length: int = option(
        1024, "STFT hop in samples, at most n_fft / 2", ge=1, le=32768, role="shards"
    )
    num_frame: int = option(128, "STFT frames of a training window", ge=1, le=16384)
    spec_type: Literal["complex", "magnitude"] = option(
        "complex", "what the network sees of the spectrogram"
    )
    spec_est_mode: Literal["mapping", "masking"] = option(
        "mapping", "output: the estimate, or a mask for the mixture"
    )
    input_channels: int | None = option(
        None, "audio channels, times 2 if complex (None: stereo)", ge=1, le=4, role="shards"
    )

    block: BlockName = option("tfc_lasaft", "the intermediate block (TDF, TDC: also TIF, TIC)")
    n_blocks: int = option(7, "number of intermediate blocks, odd", ge=1, le=31)
    internal_channels: Positive = option(24, "channels inside the U-Net")
    n_internal_layers: int = option(5, "convolutions in a block", ge=1, le=100)
    kernel_size_t: Positive = option(3, "kernel on the time axis in frames, odd")
    kernel_size_f: Positive = option(3, "kernel on the frequency axis in bins, odd")
    t_down_layers: tuple[int, ...] | None = option(
        None,
        "levels (from 0) halving frames (None: all; TDF, TDC: none)",
    )
    f_down_layers: tuple[int, ...] | None = option(
        None, "levels (from 0) halving the bins (None: all)"
    )
    norm: Literal["bn", "gn"] = option(
        "bn", "normalisation over the batch, or over groups of channels"
    )
    first_conv_activation: Activation = option("relu", "after the first convolution")
    scale_activation: Activation = option("identity", "after halving and doubling the resolution")
    last_activation: Activation | None = option(
        None,
        "after the last convolution (None: identity for mapping; for masking sigmoid "
        "on magnitude, tanh on complex)",
    )
    initializer: Literal["xavier", "kaiming"] | None = option(
        None, "first weights (None: kaiming before a last relu)"
    )
    tfc_activation: Activation = option("relu", "in TFC blocks")
    tfc_tdf_activation: Activation = option("relu", "in TFC_TDF, TFC_RNN, LaSAFT, LightSAFT")
    tdf_activation: Activation = option("relu", "in TDF nets")
    tdc_activation: Activation = option("relu", "in TDC and TDC_RNN nets")

    bn_factor: int | None = option(
        16, "frequency bottleneck: bins divided by it (None: a single layer)", ge=1
    )
    min_bn_units: Positive = option(16, "smallest bottleneck")
    num_layers_rnn: int = option(1, "layers of the GRU in RNN blocks", ge=1, le=16)
    bn_factor_rnn: Positive = option(16, "units of the GRU: bins divided by it")
    min_bn_units_rnn: Positive = option(16, "fewest units of the GRU")
    tfc_tdf_bias: bool = option(False, "biases in TFC_TDF, RNN, LaSAFT, LightSAFT linears")
    bias: bool = option(False, "biases in TDF nets' linears")
    num_tdfs: Positive = option(6, "latent sources of LaSAFT and LightSAFT")
    dk: Positive = option(32, "attention key size of LaSAFT and LightSAFT")
    query_listen: bool = option(False, "v2 blocks: the query of a frame is made of its mixture")
    key_listen: bool = option(False, "v2 blocks: the keys of a frame are made of its mixture")

    modulation: ModulationName = option("gpocm", "how a condition modulates a block's features")
    condition_to: Literal["encoder", "decoder", "full"] = option(
        "decoder", "blocks that a condition modulates (full: all)"
    )
    control_vector_type: Literal["embedding", "one_hot_mode", "multi_hot"] = option(
        "embedding", "how sources become a vector"
    )
    control_input_dim: int | None = option(
        None, "number of sources (None: as many as in sources)", ge=1, role="shards"
    )
    embedding_dim: Positive = option(32, "size of the embedded condition")
    control_type: Literal["dense", "per_block"] = option(
        "dense", "one control network for all blocks, or one each"
    )
    control_n_layer: int = option(4, "layers of the dense control network (1: none)", ge=1, le=8)
    film_type: Literal["simple", "complex"] = option(
        "complex", "FiLM: one gamma and beta a block, or one a channel"
    )
    gamma_activation: Activation = option("identity", "on FiLM's gamma")
    beta_activation: Activation = option("identity", "on FiLM's beta")
    pocm_type: Literal["naive", "matmul"] = option(
        "matmul", "generated weights are [out, in] (naive), or [in, out]"
    )
    pocm_norm: Literal["batch_norm"] | None = option(
        "batch_norm", "normalisation of the generated PoCM weights"
    )

    @property
    def resolved_input_channels(self) -> int:
        """Channels of the network's input and output (stereo unless said otherwise)."""
        if self.input_channels is not None:
            return self.input_channels
        return 4 if self.spec_type == "complex" else 2

    @property
    def audio_channels(self) -> int:
        """1 for mono, 2 for stereo."""
        return self.resolved_input_channels // (2 if self.spec_type == "complex" else 1)

    @property
    def spec_channels(self) -> int:
        """Channels of a complex-as-channels spectrogram: real parts, then imaginary parts."""
        return 2 * self.audio_channels

    @property
    def bins(self) -> int:
        """Frequency bins of the one-sided spectrogram."""
        return self.n_fft // 2 + 1

    @property
    def resolved_last_activation(self) -> Activation:
        """``last_activation``, or the one that suits the framework."""
        if self.last_activation is not None:
            return self.last_activation
        if self.spec_est_mode == "mapping":
            return "identity"
        return "sigmoid" if self.spec_type == "magnitude" else "tanh"

    @property
    def resolved_initializer(self) -> str:
        """``initializer``, or the law that the first networks had with their last activation."""
        if self.initializer is not None:
            return self.initializer
        rectified = self.resolved_last_activation in ("relu", "leaky_relu")
        return "kaiming" if rectified else "xavier"

    @property
    def levels(self) -> int:
        """Down-sampling steps of the U-Net, each undone by an up-sampling."""
        return self.n_blocks // 2

    @property
    def time_levels(self) -> tuple[int, ...]:
        """Levels that halve the time resolution; TDF and TDC nets work frame by frame."""
        if self.t_down_layers is not None:
            return self.t_down_layers
        return () if self.block.startswith("td") else tuple(range(self.levels))

    @property
    def frequency_levels(self) -> tuple[int, ...]:
        """Levels that halve the frequency resolution."""
        return tuple(range(self.levels)) if self.f_down_layers is None else self.f_down_layers

    @property
    def block_bins(self) -> tuple[int, ...]:
        """Frequency bins inside each block (encoders, middle, decoders)."""
        bins = [self.n_fft // 2]
        for level in range(self.levels):
            bins.append(bins[-1] // (2 if level in self.frequency_levels else 1))
        return (*bins, *reversed(bins[:-1]))

    @property
    def time_reduction(self) -> int:
        """The frame count must be a multiple of this."""
        return 2 ** len(self.time_levels)

    @property
    def trim_frames(self) -> int:
        """Frames dropped on each side of a separation chunk: about 5000 samples of context."""
        return -(-5000 // self.hop_length)

    @property
    def condition_size(self) -> int:
        """Size of the control vector that a source, or a set of them, becomes."""
        if self.control_vector_type == "one_hot_mode":
            return len(self.sources)
        return self.embedding_dim

    @property
    def takes_sets(self) -> bool:
        """A condition is a set of sources, not one of them."""
        return self.control_vector_type == "multi_hot"

    @property
    def block_activation(self) -> Activation:
        """The activation inside the blocks."""
        if self.block.startswith("tdc"):
            return self.tdc_activation
        if self.block == "tfc":
            return self.tfc_activation
        return self.tdf_activation if self.block == "tdf" else self.tfc_tdf_activation

    @property
    def attentive(self) -> bool:
        """Some block listens to the condition through latent source attention."""
        return any(self.attentive_blocks)

    @property
    def attentive_blocks(self) -> tuple[bool, ...]:
        """For each block: does it attend? In v2 networks those of condition_to do, else all."""
        if self.block in V2_BLOCKS:
            return self._conditioned_blocks
        return (self.block in ("tfc_lasaft", "tfc_lightsaft"),) * self.n_blocks

    @property
    def modulated_blocks(self) -> tuple[bool, ...]:
        """For each block (encoders, middle, decoders): is it modulated?"""
        none = (False,) * self.n_blocks
        return none if self.modulation == "none" else self._conditioned_blocks

    @property
    def _conditioned_blocks(self) -> tuple[bool, ...]:
        encoder = self.condition_to in ("encoder", "full")
        decoder = self.condition_to in ("decoder", "full")
        return (encoder,) * self.levels + (self.condition_to == "full",) + (decoder,) * self.levels

    def modulation_uses(self, option: str) -> bool:
        """Is it one of the options that the modulation declares?"""
        return option in MODULATIONS[self.modulation].options

    @property
    def normed_numbers(self) -> bool:
        """The numbers that modulate the blocks are normalised over the batch."""
        dense = self.control_type == "dense"
        return dense and self.pocm_norm is not None and self.modulation_uses("pocm_norm")

    @property
    def resolved(self) -> dict[str, Any]:
        """Every option by its name, with what None becomes in its place."""
        return self.model_dump() | {
            "last_activation": self.resolved_last_activation,
            "initializer": self.resolved_initializer,
            "input_channels": self.resolved_input_channels,
            "t_down_layers": self.time_levels,
            "f_down_layers": self.frequency_levels,
            "control_input_dim": len(self.sources),
        }

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        refuse([*_shape_problems(self), *_level_problems(self), *_source_problems(self)])
        return self


def _shape_problems(config: ModelConfig) -> Iterator[Problem]:
    if config.n_fft % 2:
        yield Problem("n_fft", config.n_fft, "an even number")
    if config.hop_length > config.n_fft // 2:
        half = f"at most half of n_fft ({config.n_fft // 2}), or the STFT cannot be inverted well"
        yield Problem("hop_length", config.hop_length, half, others=("n_fft",))
    if config.n_blocks % 2 == 0:
        yield Problem("n_blocks", config.n_blocks, "an odd number (encoder, middle, decoder)")
    for option in ("kernel_size_t", "kernel_size_f"):
        if getattr(config, option) % 2 == 0:
            yield Problem(option, getattr(config, option), "an odd number")
    mono, stereo = (2, 4) if config.spec_type == "complex" else (1, 2)
    if config.resolved_input_channels not in (mono, stereo):
        reason = f"allowed with spec_type {config.spec_type}: {mono} (mono) or {stereo} (stereo)"
        yield Problem("input_channels", config.input_channels, reason=reason, others=("spec_type",))


def _level_problems(config: ModelConfig) -> Iterator[Problem]:
    levels = config.levels
    for option in ("t_down_layers", "f_down_layers"):
        chosen = getattr(config, option) or ()
        wrong = sorted({level for level in chosen if not 0 <= level < levels})
        if wrong or len(set(chosen)) != len(chosen):
            allowed = f"different levels from 0 to {levels - 1} (n_blocks {config.n_blocks})"
            yield Problem(option, str(list(chosen)), allowed, others=("n_blocks",))
    bins, steps = config.n_fft // 2, len(config.frequency_levels)
    if config.n_fft % 2 == 0 and (bins >> steps) << steps != bins:
        allowed = (
            f"a multiple of {2 ** (steps + 1)}, because {steps} of the U-Net's levels halve the "
            f"{bins} bins"
        )
        yield Problem("n_fft", config.n_fft, allowed, others=("n_blocks", "f_down_layers"))
    if config.num_frame % config.time_reduction:
        allowed = (
            f"a multiple of {config.time_reduction}, because {len(config.time_levels)} of the "
            "U-Net's levels halve the frames"
        )
        others = ("n_blocks", "t_down_layers", "block")
        yield Problem("num_frame", config.num_frame, allowed, others=others)


def _source_problems(config: ModelConfig) -> Iterator[Problem]:
    for name in config.sources:
        if not re.fullmatch(r"\w[\w .+&()-]{0,63}", name) or name.endswith((".", " ")):
            allowed = "a name that can be a file name (letters, digits, _ - + & . and spaces)"
            yield Problem("sources", repr(name), allowed)
        elif name.lower() in RESERVED_SOURCES:
            reason = "which is reserved for what all sources add up to"
            yield Problem("sources", repr(name), reason=reason)
    folded = [name.lower() for name in config.sources]
    for name in sorted({name for name in folded if folded.count(name) > 1}):
        yield Problem("sources", f"{name!r} more than once", "different names")
    if config.control_input_dim not in (None, len(config.sources)):
        allowed = f"the number of sources, {len(config.sources)} ({', '.join(config.sources)})"
        yield Problem("control_input_dim", config.control_input_dim, allowed, others=("sources",))


def _variant(modulation: str, block: str, **others: Any) -> dict[str, Any]:
    return {"modulation": modulation, "block": block, **others}


def _second(act: str, **others: Any) -> dict[str, Any]:
    """Return one of the authors' second networks."""
    acts = {"tfc_tdf_activation": act, "scale_activation": act, "initializer": "kaiming"}
    listens = {"query_listen": True, "key_listen": True, "control_type": "per_block"}
    return _variant("gpocm", "tfc_lightsaft_v2", **listens, **acts, **others)


# The README's names and those of the authors' second networks, each a row of config values.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "CUNET_TFC_FiLM": _variant("film", "tfc"),
    "CUNET_TFC_FiLM_TDF": _variant("film", "tfc_tdf"),
    "CUNET_TFC_FiLM_LaSAFT": _variant("film", "tfc_lasaft"),
    "CUNET_TFC_GPoCM": _variant("gpocm", "tfc"),
    "CUNET_TFC_GPoCM_TDF": _variant("gpocm", "tfc_tdf"),
    "CUNET_TFC_GPoCM_LaSAFT": _variant("gpocm", "tfc_lasaft"),
    "CUNET_TFC_GPoCM_LightSAFT": _variant("gpocm", "tfc_lightsaft"),
    "Dense_CUNet_TFC_FiLM": _variant("film", "tfc"),
    "Dense_CUNet_TFC_GPoCM": _variant("gpocm", "tfc"),
    "lasaft_net": _variant("gpocm", "tfc_lasaft"),
    "lightsaft_net": _variant("gpocm", "tfc_lightsaft"),
    "lasaft_net_large": _variant("gpocm", "tfc_lasaft", n_fft=4096, n_blocks=9, embedding_dim=64),
    "lasaft_net_v2": _second("leaky_relu", num_tdfs=16),
    "lasaft_net_v2_light": _second(
        "leaky_relu", num_tdfs=12, internal_channels=20, first_conv_activation="leaky_relu"
    ),
    "lasaft_net_v2_large": _second("relu", num_tdfs=16, n_fft=4096, n_blocks=9, embedding_dim=64),
}


def variant_name(config: ModelConfig) -> str:
    """Return the README's name of the network, or one made in the same way.

    >>> variant_name(ModelConfig(block="tfc_tdf"))
    'CUNET_TFC_GPoCM_TDF'
    >>> variant_name(ModelConfig(block="tdc", modulation="none"))
    'UNET_TDC'
    """
    first, last = BLOCKS[config.block]
    kind = "CUNET" if config.attentive or config.modulation != "none" else "UNET"
    label = MODULATIONS[config.modulation].label
    return f"{kind}_{first}{label and '_' + label}{last}"
