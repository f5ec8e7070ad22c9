"""Search spaces: which options may take which values, when, and within which constraints."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lasaft.config import VARIANTS

# A network by its README name: several options of the model, searched as one.
VARIANT = "model"
RANGES = ("uniform", "log", "integer")

Settings = dict[str, Any]


@dataclass(frozen=True)
class Dimension:
    """One option of a space."""

    name: str  # the option, or ``model`` for a named network
    kind: Literal["choices", "uniform", "log", "integer"]
    choices: tuple[Any, ...] = ()
    low: float = 0.0  # of a range, which includes both its ends
    high: float = 0.0
    step: int = 1
    whole: bool = False  # whether the values of a range are whole numbers
    # For other options, the values with which this one is searched at all.
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def draw(self, source: random.Random) -> Any:
        """Return a value drawn from ``source``."""
        if self.kind == "choices":
            return self.choices[source.randrange(len(self.choices))]
        if self.kind == "integer":
            return int(self.low) + self.step * source.randint(0, self.steps)
        if self.kind == "uniform":
            return source.uniform(self.low, self.high)
        value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    @property
    def steps(self) -> int:
        """Steps between the ends of an integer range."""
        return int(self.high - self.low) // self.step


@dataclass(frozen=True)
class Constraints:
    """Limits that every candidate keeps; None or empty: no limit."""

    odd: tuple[str, ...] = ()  # whole options that must be odd
    min_parameters: float | None = None
    max_parameters: float | None = None
    # The size that every network is brought to, by changing ``width``.
    match_parameters: float | None = None
    width: str = "internal_channels"


@dataclass(frozen=True)
class Space:
    """A whole space; each dimension stands after those that its ``when`` names."""

    name: str
    dimensions: tuple[Dimension, ...]
    constraints: Constraints = Constraints()

    @property
    def is_grid(self) -> bool:
        """Whether there are choices only."""
        return all(dimension.kind == "choices" for dimension in self.dimensions)


def named_networks(space: Space) -> list[Mapping[str, Any]]:
    """Return the settings of each named network among the choices of ``space``."""
    return [
        VARIANTS[name]
        for dimension in space.dimensions
        if dimension.name == VARIANT
        for name in dimension.choices
    ]
