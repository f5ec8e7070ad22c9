"""Checks the shapes in the signatures of the networks while their tests run."""

from __future__ import annotations

from jaxtyping import install_import_hook

# Takes hold of modules that nothing has imported yet.
install_import_hook(
    [
        "lasaft.blocks",
        "lasaft.conditioning",
        "lasaft.frequency",
        "lasaft.fused",
        "lasaft.fused_frequency",
        "lasaft.losses",
        "lasaft.model",
        "lasaft.specialise",
        "lasaft.spectrogram",
        "lasaft.unet",
    ],
    "beartype.beartype",
)
