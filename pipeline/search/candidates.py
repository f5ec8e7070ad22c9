"""From values of a space's options to the settings of a trial, or the reason why there are none."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lasaft.config import VARIANTS, ModelConfig
from lasaft.errors import ConfigError
from pipeline.config import RunConfig
from pipeline.config.options import options_of, problems_of
from pipeline.config.run import without_effect
from pipeline.search.space import VARIANT, Dimension, Settings, Space

# With match_parameters a network may be so much larger or smaller: a channel more or less changes
# a small network by some percent.
SIZE_TOLERANCE = 0.05
_WIDEST = 4096


@dataclass(frozen=True)
class Sample:
    """The settings of one trial.

    Args:
        settings: value by option, of those options of the space that matter here.
        config: the whole configuration with them.
        parameters: size of the network; None where nobody has counted it.
    """

    settings: Settings
    config: RunConfig
    parameters: int | None = None


class BrokenSampleError(Exception):
    """A sample that breaks a rule of the options or a constraint: another one is drawn."""


class Checker:
    """Settles samples: options fit together, idle options are left out, constraints hold.

    Args:
        base: every option that the space does not name.
        space: the options and the constraints.
    """

    def __init__(self, base: RunConfig, space: Space) -> None:
        self.base, self.space = base, space
        self._options = options_of(RunConfig)
        self._tree = base.model_dump(exclude={"search"})

    def is_active(self, dimension: Dimension, settings: Settings) -> bool:
        """Whether ``dimension`` is searched at all with the ``settings`` before it."""
        return all(self._value(name, settings) in values for name, values in dimension.when.items())

    def _value(self, name: str, settings: Settings) -> Any:
        if name in settings or name == VARIANT:
            return settings.get(name)
        row = VARIANTS.get(settings.get(VARIANT, ""), {})
        return row[name] if name in row else self._tree[self._options[name].section][name]

    def settle(self, settings: Settings, *, sizes: bool = True) -> Sample:
        """Return the trial of ``settings``.

        Args:
            settings: value by option.
            sizes: whether networks are counted, which needs torch, and held to the constraints.

        Raises:
            BrokenSampleError: they break a rule; its text says which.
        """
        config = self._config(settings)
        idle = {*without_effect(config)}
        if config.train.processes == 1:
            idle.add("sync_batchnorm")  # it changes the last digits only
        mattering = {name: value for name, value in settings.items() if name not in idle}
        if mattering != settings:
            config = self._config(mattering)
        for name in self.space.constraints.odd:
            value = getattr(getattr(config, self._options[name].section), name)
            if value % 2 == 0:
                raise BrokenSampleError(f"{name}: got {value}, allowed: an odd number")
        return self._sized(mattering, config) if sizes else Sample(mattering, config)

    def _config(self, settings: Mapping[str, Any]) -> RunConfig:
        tree = {**self._tree}
        values = {**VARIANTS.get(settings.get(VARIANT, ""), {}), **settings}
        values.pop(VARIANT, None)
        for name, value in values.items():
            section = self._options[name].section
            tree[section] = {**tree[section], name: value}
        try:
            return RunConfig.model_validate(tree)
        except ValidationError as error:
            raise BrokenSampleError("; ".join(problems_of(error, self._options))) from None

    def _sized(self, settings: Settings, config: RunConfig) -> Sample:
        limits = self.space.constraints
        if limits.match_parameters is not None:
            settings, config = self._matched(settings, config, limits.match_parameters)
        count = count_parameters(config.model)
        if count < (limits.min_parameters or 0):
            raise BrokenSampleError(
                f"min_parameters: a network of {count} is below {limits.min_parameters:g}"
            )
        if limits.max_parameters is not None and count > limits.max_parameters:
            raise BrokenSampleError(
                f"max_parameters: a network of {count} is above {limits.max_parameters:g}"
            )
        return Sample(settings, config, count)

    def _matched(
        self, settings: Settings, config: RunConfig, wanted: float
    ) -> tuple[Settings, RunConfig]:
        """Return the settings with the width that brings the network nearest to ``wanted``."""
        width = self.space.constraints.width

        def at(value: int) -> tuple[RunConfig, int]:
            changed = self._config({**settings, width: value})
            return changed, count_parameters(changed.model)

        below, above = 1, 2
        while above < _WIDEST and at(above)[1] < wanted:
            below, above = above, 2 * above
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if at(middle)[1] < wanted else (below, middle)
        best = min((below, above), key=lambda value: abs(at(value)[1] - wanted))
        config, count = at(best)
        if abs(count - wanted) > SIZE_TOLERANCE * wanted:
            raise BrokenSampleError(
                f"match_parameters: no {width} brings the network to {wanted:g}; the nearest is "
                f"{count}, with {width} {best}"
            )
        return {**settings, width: best}, config


def count_parameters(model: ModelConfig) -> int:
    """Return the number of trained values of a network; nothing is computed, nothing allocated."""
    return _count(model.model_dump_json())


@functools.lru_cache(maxsize=4096)
def _count(text: str) -> int:
    import torch

    from lasaft.network.model import LaSAFT

    with torch.device("meta"):
        network = LaSAFT(ModelConfig.model_validate_json(text))
    return sum(each.numel() for each in network.parameters() if each.requires_grad)


def refuse(reasons: list[str]) -> None:
    """Raise the ``reasons`` if there are any.

    Raises:
        ConfigError: all of them.
    """
    if reasons:
        raise ConfigError(list(dict.fromkeys(reasons)))


def trial_base(run: RunConfig) -> RunConfig:
    """Return the settings that all trials share."""
    epochs = run.search.trial_epochs or run.train.max_epochs
    train = run.train.model_copy(
        update={"max_epochs": epochs, "min_epochs": min(run.train.min_epochs, epochs)}
    )
    return run.model_copy(update={"train": train})
