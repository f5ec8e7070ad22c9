"""Which options of a network do nothing with the others chosen."""

from __future__ import annotations

from lasaft.config import ModelConfig

_CONTROL_OPTIONS = ("condition_to", "control_type", "control_n_layer")
_FILM_OPTIONS = ("film_type", "gamma_activation", "beta_activation")
_POCM_OPTIONS = ("pocm_type", "pocm_norm")
_VECTOR_OPTIONS = ("control_vector_type", "embedding_dim")
_TFC_BLOCKS = ("tfc", "tfc_tdf", "tfc_lasaft", "tfc_lightsaft")
# For each option of a block, the blocks that use it.
_BLOCK_OPTIONS = {
    "n_internal_layers": (*_TFC_BLOCKS, "tdc"),
    "kernel_size_t": _TFC_BLOCKS,
    "kernel_size_f": (*_TFC_BLOCKS, "tdc"),
    "tfc_activation": ("tfc",),
    "tfc_tdf_activation": _TFC_BLOCKS[1:],
    "tdf_activation": ("tdf",),
    "tdc_activation": ("tdc",),
    "bn_factor": (*_TFC_BLOCKS[1:], "tdf"),
    "min_bn_units": (*_TFC_BLOCKS[1:], "tdf"),
    "tfc_tdf_bias": _TFC_BLOCKS[1:],
    "bias": ("tdf",),
    "num_tdfs": ("tfc_lasaft", "tfc_lightsaft"),
    "dk": ("tfc_lasaft", "tfc_lightsaft"),
}


def without_effect(config: ModelConfig) -> dict[str, str]:
    """Return the options that do nothing with the others chosen, each with the reason.

    >>> without_effect(ModelConfig(block="tfc"))["dk"]
    'block tfc does not use it (tfc_lasaft, tfc_lightsaft do)'
    """
    reasons: dict[str, str] = {}
    modulated = any(config.modulated_blocks)
    if config.modulation == "none":
        why_not = "modulation is none"
    else:
        why_not = f"with n_blocks {config.n_blocks} no block is in condition_to"
    if not modulated:
        reasons |= dict.fromkeys(_CONTROL_OPTIONS + _FILM_OPTIONS + _POCM_OPTIONS, why_not)
        if config.modulation != "none":
            reasons["modulation"] = reasons.pop("condition_to")
    elif config.modulation == "film":
        reasons |= dict.fromkeys(_POCM_OPTIONS, "modulation is film")
    else:
        reasons |= dict.fromkeys(_FILM_OPTIONS, f"modulation is {config.modulation}")
    if not modulated and not config.attentive:
        reasons |= dict.fromkeys(_VECTOR_OPTIONS, f"{why_not} and the block has no attention")
    elif config.control_vector_type == "one_hot_mode":
        reasons["embedding_dim"] = "in one_hot_mode it is the number of sources"
    for option, users in _BLOCK_OPTIONS.items():
        if config.block not in users:
            reasons[option] = f"block {config.block} does not use it ({', '.join(users)} do)"
    if config.bn_factor is None:
        reasons.setdefault("min_bn_units", "bn_factor None has no bottleneck")
    return reasons
