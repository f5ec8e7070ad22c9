"""The options of a network that do nothing with the others chosen."""

from __future__ import annotations

from lasaft.config import ModelConfig
from lasaft.errors import Problem, no_effect
from lasaft.parts import MODULATIONS, V2_BLOCKS

# Options that only some networks use.
_CONTROL_OPTIONS = ("condition_to", "control_type", "control_n_layer")
# Used by the modulations that declare them.
_MODULATION_OPTIONS = sorted({name for found in MODULATIONS.values() for name in found.options})
assert set(_MODULATION_OPTIONS) <= set(ModelConfig.model_fields), "a modulation's OPTIONS"
_VECTOR_OPTIONS = ("control_vector_type", "embedding_dim")
_ATTENTIVE = ("tfc_lasaft", "tfc_lightsaft", *V2_BLOCKS)
_TFC_BLOCKS = ("tfc", "tfc_tdf", *_ATTENTIVE, "tfc_rnn")
_TDC_BLOCKS, _RNN_BLOCKS = ("tdc", "tdc_rnn"), ("tfc_rnn", "tdc_rnn")
# For each option of a block, the blocks that use it; the others are used by every network.
_BLOCK_OPTIONS = {
    "n_internal_layers": (*_TFC_BLOCKS, *_TDC_BLOCKS),
    "kernel_size_t": _TFC_BLOCKS,
    "kernel_size_f": (*_TFC_BLOCKS, *_TDC_BLOCKS),
    "tfc_activation": ("tfc",),
    "tfc_tdf_activation": _TFC_BLOCKS[1:],
    "tdf_activation": ("tdf",),
    "tdc_activation": _TDC_BLOCKS,
    "bn_factor": (*_TFC_BLOCKS[1:], "tdf", "tdc_rnn"),
    "min_bn_units": (*_TFC_BLOCKS[1:], "tdf", "tdc_rnn"),
    "tfc_tdf_bias": (*_TFC_BLOCKS[1:], "tdc_rnn"),
    **dict.fromkeys(("num_layers_rnn", "bn_factor_rnn", "min_bn_units_rnn"), _RNN_BLOCKS),
    "bias": ("tdf",),
    "num_tdfs": _ATTENTIVE,
    "dk": _ATTENTIVE,
    "query_listen": V2_BLOCKS,
    "key_listen": V2_BLOCKS,
}


def without_effect(config: ModelConfig) -> dict[str, Problem]:
    """Return the options that do nothing with the others chosen, each with the reason.

    >>> print(without_effect(ModelConfig())["bias"])
    bias: has no effect, because block tfc_lasaft does not use it (tdf do); leave it out
    """
    idle: dict[str, Problem] = {}
    modulated = any(config.modulated_blocks)
    if config.modulation == "none":
        why_not, others = "modulation is none", ("modulation",)
    else:
        why_not = f"with n_blocks {config.n_blocks} no block is in condition_to"
        others = ("n_blocks", "condition_to")
    if not modulated:
        idle |= no_effect((*_CONTROL_OPTIONS, *_MODULATION_OPTIONS), why_not, *others)
        if config.modulation != "none":
            idle |= no_effect(["modulation"], why_not, *others)
        if config.modulation != "none" or config.block in V2_BLOCKS:
            del idle["condition_to"]
    elif config.control_type == "per_block":
        idle |= no_effect(
            ("control_n_layer", "pocm_norm"), "control_type is per_block", "control_type"
        )
    for option in _MODULATION_OPTIONS if modulated else ():
        if not config.modulation_uses(option):
            idle |= no_effect([option], f"modulation is {config.modulation}", "modulation")
    if not modulated and not config.attentive:
        why_not += " and the block has no attention"
        idle |= no_effect(_VECTOR_OPTIONS, why_not, *others, "block")
    elif config.control_vector_type == "one_hot_mode":
        why_not = "in one_hot_mode it is the number of sources"
        idle |= no_effect(["embedding_dim"], why_not, "control_vector_type")
    return idle | _idle_in_blocks(config)


def _idle_in_blocks(config: ModelConfig) -> dict[str, Problem]:
    idle: dict[str, Problem] = {}
    if not config.levels:
        idle |= no_effect(["scale_activation"], "n_blocks 1 has no other resolution", "n_blocks")
    for option, users in _BLOCK_OPTIONS.items():
        if config.block not in users:
            why_not = f"block {config.block} does not use it ({', '.join(users)} do)"
            idle |= no_effect([option], why_not, "block")
    if config.block in V2_BLOCKS and not config.attentive:
        why_not = f"with n_blocks {config.n_blocks} no block is in condition_to"
        listening = ("num_tdfs", "dk", "query_listen", "key_listen")
        idle |= no_effect(listening, why_not, "n_blocks", "condition_to")
    if config.bn_factor is None and "min_bn_units" not in idle:
        idle |= no_effect(["min_bn_units"], "bn_factor None has no bottleneck", "bn_factor")
    return idle
