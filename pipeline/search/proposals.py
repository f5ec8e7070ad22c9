"""The next candidate of a search: a cell of a grid, a random draw, or Optuna's proposal.

Each proposal is a function of the search's seed, of its number and of the trials before it, so a
search that was interrupted proposes what the undisturbed one would have.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lasaft.errors import ConfigError
from pipeline.search.candidates import Candidate, Checker, InvalidCandidateError
from pipeline.search.space import Dimension, Settings

if TYPE_CHECKING:
    from pipeline.search.trials import Trial

# So many draws in a row that break a rule, or repeat an earlier trial, end the drawing.
_MOST_DRAWS = 1000
_LARGEST_GRID = 100_000


def _grid_cells(
    checker: Checker, settings: Settings, rest: Sequence[Dimension]
) -> Iterator[Settings]:
    """Yield ``settings`` with every combination of the choices of ``rest``, where these apply."""
    if not rest:
        yield settings
        return
    first, *others = rest
    if not checker.is_active(first, settings):
        yield from _grid_cells(checker, settings, others)
        return
    for value in first.choices:
        yield from _grid_cells(checker, {**settings, first.name: value}, others)


def grid(checker: Checker) -> list[Candidate]:
    """Return the valid cells of the grid, each settings once.

    Raises:
        ConfigError: there is no valid cell, or there are far too many.
    """
    candidates: list[Candidate] = []
    reasons: list[str] = []
    for number, settings in enumerate(_grid_cells(checker, {}, checker.space.dimensions)):
        if number == _LARGEST_GRID:
            raise ConfigError(
                f"searcher: got grid, but the space has more than {_LARGEST_GRID} cells; allowed: "
                "random, optuna, or fewer choices"
            )
        try:
            candidate = checker.settle(settings)
        except InvalidCandidateError as error:
            reasons.append(str(error))
            continue
        if all(candidate.settings != other.settings for other in candidates):
            candidates.append(candidate)
    if not candidates:
        raise ConfigError(f"space: no cell of the grid is valid{_examples(reasons)}")
    return candidates


def draw(checker: Checker, source: random.Random, **fixed: Any) -> Settings:
    """Return random values for the active options; ``fixed`` ones, where active, are as given."""
    settings: Settings = {}
    for dimension in checker.space.dimensions:
        if checker.is_active(dimension, settings):
            value = dimension.draw(source)
            settings[dimension.name] = fixed.get(dimension.name, value)
    return settings


def propose_random(checker: Checker, seed: int, earlier: Sequence[Trial]) -> Candidate | None:
    """Return the next random candidate, None if nothing new is left.

    Raises:
        ConfigError: no valid candidate was found at all.
    """
    from pipeline.training.loop.randomness import derive_seed

    source = random.Random(derive_seed(seed, "trial", len(earlier)))
    return _first_new(lambda attempt: draw(checker, source), checker, earlier)


def _first_new(
    drawn: Callable[[int], Settings], checker: Checker, earlier: Sequence[Trial]
) -> Candidate | None:
    """Return the first valid one of ``drawn(0)``, ``drawn(1)`` ... that no earlier trial has."""
    seen = [trial.settings for trial in earlier]
    reasons: list[str] = []
    for attempt in range(_MOST_DRAWS):
        try:
            candidate = checker.settle(drawn(attempt))
        except InvalidCandidateError as error:
            reasons.append(str(error))
            continue
        if candidate.settings not in seen:
            return candidate
    if seen:
        return None
    raise ConfigError(
        f"space: {_MOST_DRAWS} draws in a row broke a rule; allowed: a space with valid settings"
        f"{_examples(reasons)}"
    )


def _examples(reasons: Sequence[str]) -> str:
    """Return how often each rule was broken, most often first, with the last example of each."""
    last = {reason.partition(":")[0]: reason for reason in reasons}
    often = Counter(reason.partition(":")[0] for reason in reasons)
    lines = [f"    {count} times, such as: {last[rule]}" for rule, count in often.most_common(5)]
    return "\n".join([":", *lines])


def propose_optuna(
    checker: Checker, seed: int, objectives: Sequence[tuple[str, bool]], earlier: Sequence[Trial]
) -> Candidate | None:
    """Return Optuna's next proposal (multivariate TPE), None if nothing new is left.

    Args:
        checker: makes candidates of the proposals.
        seed: of the proposals.
        objectives: names, and whether more is better.
        earlier: the trials so far; those that run count as running.
    """
    import optuna

    from pipeline.training.loop.randomness import derive_seed

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {one.name: _distribution(one) for one in checker.space.dimensions}
    names = [name for name, _ in objectives]
    known = [_optuna_trial(trial, names, distributions) for trial in earlier]

    def proposed(attempt: int) -> Settings:
        study = optuna.create_study(
            directions=["maximize" if more else "minimize" for _, more in objectives],
            sampler=_sampler(derive_seed(seed, "optuna", len(earlier), attempt) % 2**32),
        )
        study.add_trials(known)
        asked = study.ask()
        settings: Settings = {}
        for dimension in checker.space.dimensions:
            if checker.is_active(dimension, settings):
                found = _suggested(asked, dimension, distributions[dimension.name])
                settings[dimension.name] = found
        return settings

    return _first_new(proposed, checker, earlier)


def _sampler(seed: int) -> Any:
    import optuna

    with warnings.catch_warnings():
        # Multivariate, grouped and with running trials in mind: Optuna calls these experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=8
        )


def _distribution(dimension: Dimension) -> Any:
    """Return the values of ``dimension`` as Optuna describes them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low, high = dimension.low, dimension.high
    if dimension.kind == "choices":
        return CategoricalDistribution([_hashable(value) for value in dimension.choices])
    if dimension.kind == "integer":
        top = int(low) + dimension.steps * dimension.step
        return IntDistribution(int(low), top, step=dimension.step)
    if dimension.whole:
        return IntDistribution(int(low), int(high), log=True)
    return FloatDistribution(low, high, log=dimension.kind == "log")


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, tuple) else value


def _suggested(asked: Any, dimension: Dimension, values: Any) -> Any:
    """Return the value that Optuna's trial ``asked`` takes from ``values`` for ``dimension``."""
    name = dimension.name
    if dimension.kind == "choices":
        found = asked.suggest_categorical(name, values.choices)
        return dimension.choices[values.choices.index(found)]
    if dimension.kind == "integer" or dimension.whole:
        return asked.suggest_int(name, values.low, values.high, step=values.step, log=values.log)
    return asked.suggest_float(name, values.low, values.high, log=values.log)


def _optuna_trial(trial: Trial, names: Sequence[str], distributions: Mapping[str, Any]) -> Any:
    """Return ``trial`` as Optuna knows it: complete, pruned, failed or running."""
    from optuna.trial import TrialState, create_trial

    mine = {name: value for name, value in distributions.items() if name in trial.settings}
    params = {name: _hashable(trial.settings[name]) for name in mine}
    figures = [trial.figure(name) for name in names]
    values = [value for value in figures if value is not None]
    ended = trial.status in ("done", "stopped")
    state = TrialState.FAIL if ended or trial.status == "failed" else TrialState.RUNNING
    result: dict[str, Any] = {}
    if ended and len(values) == len(names):
        if trial.status == "done" or len(names) > 1:
            state, result = TrialState.COMPLETE, {"values": values}
        else:
            state, result = TrialState.PRUNED, {"intermediate_values": {trial.epochs: values[0]}}
    return create_trial(state=state, params=params, distributions=mine, **result)
