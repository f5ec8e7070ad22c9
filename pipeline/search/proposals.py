"""Which settings come next: the cells of a grid, random draws, or Optuna's proposals.

Each proposal is a function of the search's seed, of its number and of the trials before it, so a
search that was interrupted proposes what the undisturbed one would have.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lasaft.errors import ConfigError
from pipeline.search.candidates import BrokenSampleError, Checker, Sample
from pipeline.search.space import Dimension, Settings

if TYPE_CHECKING:
    from pipeline.search.trials import Trial

# So many draws in a row that break a rule, or repeat an earlier trial, end the drawing.
MOST_DRAWS = 1000
_LARGEST_GRID = 100_000

Propose = Callable[[Sequence["Trial"]], Sample | None]


def grid_cells(checker: Checker) -> Iterator[Settings]:
    """Yield every combination of the choices; options count only where their conditions hold."""

    def extend(settings: Settings, rest: Sequence[Dimension]) -> Iterator[Settings]:
        if not rest:
            yield settings
            return
        first, *others = rest
        if not checker.is_active(first, settings):
            yield from extend(settings, others)
            return
        for value in first.choices:
            yield from extend({**settings, first.name: value}, others)

    yield from extend({}, checker.space.dimensions)


def grid(checker: Checker) -> list[Sample]:
    """Return the valid cells of the grid, each settings once.

    Raises:
        ConfigError: there is no valid cell, or there are far too many.
    """
    samples: list[Sample] = []
    reasons: list[str] = []
    for number, settings in enumerate(grid_cells(checker)):
        if number == _LARGEST_GRID:
            raise ConfigError(
                f"searcher: got grid, but the space has more than {_LARGEST_GRID} cells; allowed: "
                "random, optuna, or fewer choices"
            )
        try:
            sample = checker.settle(settings)
        except BrokenSampleError as error:
            reasons.append(str(error))
            continue
        if all(sample.settings != other.settings for other in samples):
            samples.append(sample)
    if not samples:
        raise ConfigError(f"space: no cell of the grid is valid{_told_reasons(reasons)}")
    return samples


def draw(checker: Checker, source: random.Random, **fixed: Any) -> Settings:
    """Return random values for the active options; ``fixed`` ones, where active, are as given."""
    settings: Settings = {}
    for dimension in checker.space.dimensions:
        if checker.is_active(dimension, settings):
            value = dimension.draw(source)
            settings[dimension.name] = fixed.get(dimension.name, value)
    return settings


def propose_random(checker: Checker, seed: int, earlier: Sequence[Trial]) -> Sample | None:
    """Return the next random sample, None if nothing new is left.

    Raises:
        ConfigError: no valid sample was found at all.
    """
    from pipeline.training.loop.randomness import derive_seed

    seen = [trial.settings for trial in earlier]
    source = random.Random(derive_seed(seed, "trial", len(earlier)))
    return _first_new(lambda attempt: draw(checker, source), checker, seen)


def _first_new(
    drawn: Callable[[int], Settings], checker: Checker, seen: Sequence[Settings]
) -> Sample | None:
    reasons: list[str] = []
    for attempt in range(MOST_DRAWS):
        try:
            sample = checker.settle(drawn(attempt))
        except BrokenSampleError as error:
            reasons.append(str(error))
            continue
        if sample.settings not in seen:
            return sample
    if seen:
        return None
    raise ConfigError(
        f"space: {MOST_DRAWS} samples in a row broke a rule; allowed: a space with valid samples"
        f"{_told_reasons(reasons)}"
    )


def _told_reasons(reasons: Sequence[str]) -> str:
    """Return how often each rule was broken, with the last example of each."""
    last = {reason.partition(":")[0]: reason for reason in reasons}
    often = Counter(reason.partition(":")[0] for reason in reasons)
    lines = [f"    {count} times, such as: {last[rule]}" for rule, count in often.most_common(5)]
    return "\n".join([":", *lines])


def propose_optuna(
    checker: Checker, seed: int, objectives: Sequence[tuple[str, bool]], earlier: Sequence[Trial]
) -> Sample | None:
    """Return Optuna's next proposal (multivariate TPE), None if nothing new is left.

    Args:
        checker: settles what is proposed.
        seed: of the proposals.
        objectives: names, and whether more is better.
        earlier: the trials so far; those that run count as running.
    """
    import optuna

    from pipeline.training.loop.randomness import derive_seed

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = ["maximize" if more else "minimize" for _, more in objectives]
    names = [name for name, _ in objectives]

    def proposed(attempt: int) -> Settings:
        sampler = _sampler(derive_seed(seed, "optuna", len(earlier), attempt) % 2**32)
        study = optuna.create_study(directions=directions, sampler=sampler)
        study.add_trials([_told(checker, trial, names) for trial in earlier])
        asked = study.ask()
        settings: Settings = {}
        for dimension in checker.space.dimensions:
            if checker.is_active(dimension, settings):
                settings[dimension.name] = _suggested(asked, dimension)
        return settings

    seen = [trial.settings for trial in earlier]
    return _first_new(proposed, checker, seen)


def _sampler(seed: int) -> Any:
    import warnings

    import optuna

    with warnings.catch_warnings():
        # Multivariate, grouped and with running trials in mind: Optuna calls these experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=8
        )


def _distribution(dimension: Dimension) -> Any:
    import optuna

    low, high = dimension.low, dimension.high
    if dimension.kind == "choices":
        return optuna.distributions.CategoricalDistribution([*map(_hashable, dimension.choices)])
    if dimension.kind == "integer":
        top = int(low) + dimension.steps * dimension.step
        return optuna.distributions.IntDistribution(int(low), top, step=dimension.step)
    if dimension.whole:
        return optuna.distributions.IntDistribution(int(low), int(high), log=True)
    return optuna.distributions.FloatDistribution(low, high, log=dimension.kind == "log")


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, tuple) else value


def _suggested(asked: Any, dimension: Dimension) -> Any:
    import optuna

    distribution = _distribution(dimension)
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        found = asked.suggest_categorical(dimension.name, distribution.choices)
        return dimension.choices[distribution.choices.index(found)]
    if isinstance(distribution, optuna.distributions.IntDistribution):
        return asked.suggest_int(
            dimension.name, distribution.low, distribution.high,
            step=distribution.step, log=distribution.log,
        )  # fmt: skip
    return asked.suggest_float(
        dimension.name, distribution.low, distribution.high, log=distribution.log
    )


def _told(checker: Checker, trial: Trial, names: Sequence[str]) -> Any:
    """Return ``trial`` as Optuna knows it: complete, ended early, failed or running."""
    import optuna

    mine = {one.name: one for one in checker.space.dimensions if one.name in trial.settings}
    params = {name: _hashable(trial.settings[name]) for name in mine}
    distributions = {name: _distribution(one) for name, one in mine.items()}
    states = optuna.trial.TrialState
    values = [value for name in names if (value := trial.figure(name)) is not None]
    known = len(values) == len(names)
    ended = trial.status in ("done", "stopped")
    if ended and known and (trial.status == "done" or len(names) > 1):
        return optuna.trial.create_trial(
            state=states.COMPLETE, values=values, params=params, distributions=distributions
        )
    if ended and known:
        return optuna.trial.create_trial(
            state=states.PRUNED, params=params, distributions=distributions,
            intermediate_values={trial.epochs: values[0]},
        )  # fmt: skip
    state = states.FAIL if trial.status in ("failed", "done", "stopped") else states.RUNNING
    return optuna.trial.create_trial(state=state, params=params, distributions=distributions)
