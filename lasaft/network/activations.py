"""The activations by the README's names."""

from __future__ import annotations

from torch import nn


def activation(name: str) -> nn.Module:
    """Build an activation; softmax is over the channels (axis 1), as it is in the reference."""
    builders = {
        "leaky_relu": nn.LeakyReLU,
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "softmax": lambda: nn.Softmax(dim=1),
        "identity": nn.Identity,
    }
    return builders[name]()
