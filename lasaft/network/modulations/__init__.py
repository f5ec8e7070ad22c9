"""How generated numbers change a block's features; every file in this folder is one modulation.

To add one, write one file here, for example ``bin_gain.py`` for ``modulation: bin_gain``::

    '''Multiplies each frequency bin by a gain of its own.'''     # the text of --help

    LABEL = "BinGain"                   # the class, and in names of networks: CUNET_TFC_BinGain
    OPTIONS = ("gamma_activation",)     # those of ModelConfig that not every modulation uses

    class BinGain(Modulation):
        @staticmethod
        def numbers(config, bins):      # how many gammas and betas are generated for a block
            return bins, 0

        def modulate(self, x, gamma, beta):
            return x * (1 + gamma[:, None, None])

The file's name is the modulation's: ``--help``, presets, search spaces, training, the fast form,
reports and exports need nothing else. ``OPTIONS`` may name gamma_activation, beta_activation and
pocm_norm, which the generator of the numbers applies, and film_type and pocm_type, which the class
reads itself. :mod:`lasaft.config` reads the docstring, ``LABEL`` and ``OPTIONS`` without running
the file, so they must be written out as above. A class may name a ``fast_form`` that is faster
than the plain form in the network's fast form.
"""

from __future__ import annotations

import copy
import importlib
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lasaft.config import ModelConfig
from lasaft.parts import MODULATIONS


class Condition(NamedTuple):
    """What the blocks get to know of the wanted source; a part that no block uses is empty.

    Attributes:
        vector: the control vector [batch, size], which attention reads.
        gamma: for each modulated block (encoders, middle, decoders) its gammas [batch, number].
        beta: the same of its betas.
    """

    vector: Tensor | None = None
    gamma: tuple[Tensor, ...] = ()
    beta: tuple[Tensor, ...] = ()


class FastModulation(nn.Module):
    """A modulation for a list of conditions whose numbers are known, in the network's fast form.

    This one serves every modulation: it runs the plain form. Subclasses are faster.

    Attributes:
        gamma: [condition, number].
        beta: [condition, number].
    """

    gamma: Tensor
    beta: Tensor

    def __init__(self, modulation: Modulation, condition: Condition, dtype: torch.dtype) -> None:
        super().__init__()
        self.modulation = copy.deepcopy(modulation).eval().to(dtype)
        self.register_buffer("gamma", condition.gamma[modulation.slot].to(dtype))
        self.register_buffer("beta", condition.beta[modulation.slot].to(dtype))

    def forward(
        self,
        x: Float[Tensor, "batch channel bin frame"],
        which: int,
        out: Float[Tensor, "batch channel bin frame"],
    ) -> None:
        """Write ``x`` modulated for condition number ``which`` into ``out``, which may be ``x``.

        Args:
            x: features in the layout of :mod:`lasaft.fast`: frames last.
            which: index into the conditions.
            out: of the same layout.
        """
        gamma, beta = (numbers[which].expand(len(x), -1) for numbers in (self.gamma, self.beta))
        out.copy_(self.modulation.modulate(x.mT, gamma, beta).mT)


class Modulation(nn.Module):
    """Base of the modulations.

    Args:
        bins: frequency bins of the block's features.
        slot: number of the block among the modulated ones: index into the condition's numbers.
    """

    fast_form: ClassVar[type[FastModulation]] = FastModulation

    def __init__(self, config: ModelConfig, bins: int, slot: int) -> None:
        super().__init__()
        self.slot = slot

    @staticmethod
    def numbers(config: ModelConfig, bins: int) -> tuple[int, int]:
        """Return how many gammas and betas a block needs (0: none are generated)."""
        raise NotImplementedError

    def modulate(
        self,
        x: Float[Tensor, "batch channel frame bin"],
        gamma: Float[Tensor, "batch gammas"],
        beta: Float[Tensor, "batch betas"],
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return the features changed by the generated numbers of each item."""
        raise NotImplementedError

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return the features changed by this block's part of the condition."""
        return self.modulate(x, condition.gamma[self.slot], condition.beta[self.slot])


class Unmodulated(nn.Module):
    """Leaves a block's features alone."""

    def forward(
        self, x: Float[Tensor, "batch channel frame bin"], condition: Condition
    ) -> Float[Tensor, "batch channel frame bin"]:
        """Return ``x``."""
        return x


def modulation_class(name: str) -> type[Modulation]:
    """Return the class of a modulation, from the file that has its name."""
    return getattr(importlib.import_module(f"{__name__}.{name}"), MODULATIONS[name].label)


def build_modulation(config: ModelConfig, bins: int, block: int) -> nn.Module:
    """Return the modulation of the block with this number (encoders, middle, decoders).

    Args:
        bins: frequency bins of its features.
    """
    if not config.modulated_blocks[block]:
        return Unmodulated()
    slot = sum(config.modulated_blocks[:block])
    return modulation_class(config.modulation)(config, bins, slot)
