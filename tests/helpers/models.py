"""Small networks with lively weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lasaft.config import ModelConfig
from lasaft.network.model import LaSAFT

# 16 frames and 32 bins inside the network; three blocks.
SMALL: dict[str, Any] = {
    "n_fft": 64,
    "hop_length": 32,
    "num_frame": 16,
    "n_blocks": 3,
    "internal_channels": 4,
    "n_internal_layers": 2,
    "embedding_dim": 6,
    "bn_factor": 4,
    "min_bn_units": 4,
    "num_tdfs": 3,
    "dk": 5,
}


def small_config(**options: Any) -> ModelConfig:
    """A config for tests of a few milliseconds."""
    return ModelConfig(**{**SMALL, **options})


def small_model(seed: int = 0, **options: Any) -> LaSAFT:
    """A small network in eval mode; biases and BatchNorm statistics are random too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LaSAFT(small_config(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.copy_(torch.empty_like(parameter).uniform_(0.3, 1.3, generator=generator))
        for module in model.modules():
            if (
                isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
                and module.running_var is not None
            ):
                assert module.running_mean is not None
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def random_spec(model: LaSAFT, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """A mixture's spectrogram for ``model``: [batch, plane, num_frame, bin]."""
    config = model.config
    shape = (batch, config.spec_channels, config.num_frame, config.bins)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def window_samples(config: ModelConfig) -> int:
    """Samples of a window of ``num_frame`` frames."""
    return config.hop_length * (config.num_frame - 1)
