"""From a condition to the numbers that modulate the blocks: control vector, network, heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lasaft.config import ModelConfig
from lasaft.errors import ConfigError
from lasaft.network.activations import activation
from lasaft.network.generator import BlockGenerator
from lasaft.network.modulations import Condition, modulation_class

# For each item an index into ``config.sources``; or for each of these 1 where it is wanted, else 0.
Wanted = Int[Tensor, " batch"] | Float[Tensor, "batch source"]


class OneHot(nn.Module):
    """A source number as a vector with a single one."""

    identity: Tensor

    def __init__(self, sources: int) -> None:
        super().__init__()
        self.register_buffer("identity", torch.eye(sources), persistent=False)

    def forward(self, source: Int[Tensor, " batch"]) -> Float[Tensor, "batch source"]:
        """Return a row of the identity for each item."""
        return self.identity[source]


class SetEmbedding(nn.Embedding):
    """A set of sources as the sum of their vectors: a linear map of ones and zeros, no offset.

    A set of one source gives its row, to the bit what ``Embedding`` gives for its number, and the
    weights of both are the same: a network that knows single sources can go on to learn sets.
    """

    def forward(self, input: Wanted) -> Float[Tensor, "batch size"]:
        """Return the vector of each item's set, or of its source."""
        return input @ self.weight if input.is_floating_point() else super().forward(input)


class ControlLayer(nn.Module):
    """One layer of the control network; from the second on it is dropped out and normalised."""

    def __init__(self, inputs: int, *, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * inputs)
        self.norm = None if first else nn.BatchNorm1d(2 * inputs)
        self.dropout = None if first else nn.Dropout(0.5)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """Double the number of features."""
        x = self.linear(x).relu()
        return x if self.norm is None or self.dropout is None else self.norm(self.dropout(x))


class Head(nn.Module):
    """Generates one kind of number (gamma or beta) for all modulated blocks.

    Args:
        inputs: size of the control network's output.
        counts: how many numbers each block needs; if none needs any, the head has no weights.
        act: activation on the numbers.
        normed: they are normalised over the batch.
    """

    def __init__(self, inputs: int, counts: Sequence[int], act: str, *, normed: bool) -> None:
        super().__init__()
        self.counts, total = list(counts), sum(counts)
        self.linear = nn.Linear(inputs, total) if total else None
        self.norm = nn.BatchNorm1d(total, affine=False) if normed and total else nn.Identity()
        self.activation = activation(act)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> tuple[Float[Tensor, "batch _"], ...]:
        """Return the numbers [batch, count] of each block."""
        if self.linear is None:
            # Not len(x), which would fix the batch size in an exported network.
            return (x.new_zeros(x.shape[0], 0),) * len(self.counts)
        return self.norm(self.activation(self.linear(x))).split(self.counts, dim=-1)


def _embedding(kind: type[nn.Embedding], sources: int, size: int) -> nn.Embedding:
    """Return ``kind(sources, size)``, which torch can also make without values.

    Itself it draws in place: for that, without values, torch imports its compiler, for a second.
    """
    return kind.from_pretrained(torch.randn(sources, size), freeze=False)


class Conditioner(nn.Module):
    """Control vector -> control network -> the numbers that modulate every block.

    Only what the config uses exists, so that no parameter is left without a gradient.

    Source: arXiv 2010.11631, section 2.1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.condition_size
        modulated = any(config.modulated_blocks)
        self.embedding = self.control = self.gamma = self.beta = None
        if modulated or config.attentive:
            one_hot = config.control_vector_type == "one_hot_mode"
            kind = SetEmbedding if config.takes_sets else nn.Embedding
            sources = len(config.sources)
            self.embedding = OneHot(sources) if one_hot else _embedding(kind, sources, size)
        self.generators = None
        if modulated and config.control_type == "per_block":
            self.generators = nn.ModuleList(
                BlockGenerator(size, counts) for counts in _counts(config)
            )
            self.activations = nn.ModuleList(activation(act) for act in _activations(config))
        elif modulated:
            layers = range(config.control_n_layer - 1)
            self.control = nn.Sequential(
                *(ControlLayer(size << layer, first=layer == 0) for layer in layers)
            )
            self.gamma, self.beta = _heads(config, size << len(layers))

    def forward(self, wanted: Wanted) -> Condition:
        """Return the condition of each item.

        Args:
            wanted: index into ``config.sources``; with multi_hot also a row of ones and zeros.

        Raises:
            ConfigError: a set without multi_hot, or training with one item, whose batch statistics
                do not exist.
        """
        if self.embedding is None:
            return Condition()
        if wanted.is_floating_point() and not isinstance(self.embedding, SetEmbedding):
            raise ConfigError("condition: got sets of sources, allowed: indices without multi_hot")
        vector = self.embedding(wanted)
        if self.generators is not None:
            numbers = zip(*(generator(vector) for generator in self.generators), strict=True)
            gamma, beta = (
                tuple(act(each) for each in kind)
                for act, kind in zip(self.activations, numbers, strict=True)
            )
            return Condition(vector, gamma, beta)
        if self.control is None or self.gamma is None or self.beta is None:
            return Condition(vector)
        if self.training and len(wanted) == 1 and self._needs_batch():
            raise ConfigError(
                "batch_size: got 1 item a process, allowed: 2 or more, because the control "
                "network normalises over the batch (control_n_layer 3 or more, or pocm_norm)"
            )
        control = self.control(vector)
        return Condition(vector, self.gamma(control), self.beta(control))

    def _needs_batch(self) -> bool:
        return any(isinstance(module, nn.BatchNorm1d) for module in self.modules())


def _counts(config: ModelConfig) -> list[tuple[int, int]]:
    """Return how many gammas and betas each modulated block needs."""
    numbers = modulation_class(config.modulation).numbers
    blocks = zip(config.block_bins, config.modulated_blocks, strict=True)
    return [numbers(config, bins) for bins, modulated in blocks if modulated]


def _activations(config: ModelConfig) -> Iterator[str]:
    """Yield the activation of gammas, then that of betas."""
    acts = {"gamma_activation": config.gamma_activation, "beta_activation": config.beta_activation}
    for option, act in acts.items():
        yield act if config.modulation_uses(option) else "identity"


def _heads(config: ModelConfig, inputs: int) -> Iterator[Head]:
    """Yield the generators of gammas and betas."""
    kinds = zip(*_counts(config), strict=True)
    for act, each in zip(_activations(config), kinds, strict=True):
        yield Head(inputs, each, act, normed=config.normed_numbers)
