"""Candidates: the settings of a trial to be, made valid, or the reason why they cannot be."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from lasaft.config import VARIANTS, ModelConfig
from lasaft.options import problems_of
from pipeline.config import RunConfig, SearchConfig
from pipeline.config.roles import all_options
from pipeline.config.run import without_effect
from pipeline.search.space import VARIANT, Dimension, Settings, Space

# How far, relatively, a network may be from match_parameters: one channel more or less changes a
# small network by some percent.
_SIZE_TOLERANCE = 0.05
_WIDEST = 4096


@dataclass(frozen=True)
class Candidate:
    """The settings of a trial to be."""

    settings: Settings  # value by option, of those options of the space that matter here
    config: RunConfig  # the whole configuration with them
    parameters: int | None = None  # size of the network; None where it was not counted


class InvalidCandidateError(Exception):
    """Settings that break rules of the options or the space; ``options``: what these look at."""

    def __init__(self, text: str, options: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.options = tuple(options)


class Checker:
    """Makes candidates: options fit together, those without effect are left out, constraints hold.

    ``base`` has the options that the ``space`` does not name.
    """

    def __init__(self, base: RunConfig, space: Space) -> None:
        self.base, self.space = base, space
        self._options = all_options()
        self._tree = base.model_dump(exclude={"search"})

    def is_active(self, dimension: Dimension, settings: Settings) -> bool:
        """Whether ``dimension`` is searched at all with the ``settings`` before it."""
        return all(self._value(name, settings) in values for name, values in dimension.when.items())

    def _value(self, name: str, settings: Settings) -> Any:
        if name in settings or name == VARIANT:
            return settings.get(name)
        row = VARIANTS.get(settings.get(VARIANT, ""), {})
        return row[name] if name in row else self._tree[self._options[name].section][name]

    def settle(self, settings: Settings, *, sizes: bool = True) -> Candidate:
        """Return the candidate with ``settings``, without those that have no effect.

        Args:
            settings: value by option.
            sizes: whether networks are counted, which needs torch, and held to the constraints.

        Raises:
            InvalidCandidateError: they break a rule; its text says which.
        """
        config = self._config(settings)
        idle = {*without_effect(config)}
        if config.train.processes == 1:
            idle.add("sync_batchnorm")  # it changes the last digits only
        used = {name: value for name, value in settings.items() if name not in idle}
        if used != settings:
            config = self._config(used)
        for name in self.space.constraints.odd:
            value = getattr(getattr(config, self._options[name].section), name)
            if value % 2 == 0:
                raise InvalidCandidateError(f"{name}: got {value}, allowed: an odd number")
        return self._sized(used, config) if sizes else Candidate(used, config)

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
            found = problems_of(error, self._options)
            looked_at = (name for one in found for name in (one.option, *one.others))
            raise InvalidCandidateError("; ".join(map(str, found)), looked_at) from None

    def _sized(self, settings: Settings, config: RunConfig) -> Candidate:
        limits = self.space.constraints
        if limits.match_parameters is not None:
            settings, config = self._matched(settings, config, limits.match_parameters)
        count = count_parameters(config.model)
        if count < (least := limits.min_parameters or 0):
            raise InvalidCandidateError(f"min_parameters: a network of {count} is below {least:g}")
        if count > (most := limits.max_parameters or math.inf):
            raise InvalidCandidateError(f"max_parameters: a network of {count} is above {most:g}")
        return Candidate(settings, config, count)

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
        if abs(count - wanted) > _SIZE_TOLERANCE * wanted:
            raise InvalidCandidateError(
                f"match_parameters: no {width} brings the network to {wanted:g}; the nearest is "
                f"{count}, with {width} {best}"
            )
        return {**settings, width: best}, config


def count_parameters(model: ModelConfig) -> int:
    """Return the number of trained values of a network, which is built without memory for them."""
    return _count(model.model_dump_json())


@functools.lru_cache(maxsize=4096)
def _count(text: str) -> int:
    import torch

    from lasaft.network.model import LaSAFT

    with torch.device("meta"):
        network = LaSAFT(ModelConfig.model_validate_json(text))
    return sum(each.numel() for each in network.parameters() if each.requires_grad)


def trial_base(run: RunConfig) -> RunConfig:
    """Return the settings that all trials share."""
    epochs = run.search.trial_epochs or run.train.max_epochs
    shared = {"max_epochs": epochs, "min_epochs": min(run.train.min_epochs, epochs)}
    shared |= {"validation": "inline"}  # what beside it would hold is of use to another trial
    return run.model_copy(update={"train": run.train.model_copy(update=shared)})


def searcher_of(search: SearchConfig, space: Space) -> Literal["grid", "random", "optuna"]:
    """Return how trials are chosen: as ``searcher`` says, or where it is None as suits the rest."""
    usual = "grid" if space.is_grid and search.num_trials is None else "random"
    return search.searcher or usual
