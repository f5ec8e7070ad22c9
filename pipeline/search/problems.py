"""What is wrong with the options and the space of a search, found before anything starts."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator

from lasaft.errors import ConfigError, Problem, no_effect
from pipeline.config import RunConfig
from pipeline.config.run import without_effect
from pipeline.search.candidates import Checker, InvalidCandidateError, trial_base
from pipeline.search.proposals import draw
from pipeline.search.space import Dimension, Space, named_networks
from pipeline.search.space_reader import SPACES, read_space

# A value that none of so many candidates has is in no valid trial.
_TRIES = 200


def search_problems(run: RunConfig) -> Iterator[Problem]:
    """Yield what is wrong with the search that ``run`` asks for."""
    search = run.search
    if search.space is None:
        allowed = f"{', '.join(SPACES.names())}, or a YAML file with the options to search"
        yield Problem("space", "None", allowed)
        return
    try:
        space = read_space(search.space)
    except ConfigError as error:
        yield from error.problems
        return
    base = trial_base(run)
    epochs = base.train.max_epochs
    if search.scheduler != "none" and search.grace_epochs >= epochs:
        reason = (
            f"allowed with scheduler {search.scheduler}: fewer than the epochs of a trial, "
            f"{epochs} (trial_epochs, else max_epochs)"
        )
        others = ("scheduler", "trial_epochs", "max_epochs")
        yield Problem("grace_epochs", search.grace_epochs, reason=reason, others=others)
    ranges = [dimension for dimension in space.dimensions if dimension.kind != "choices"]
    for dimension in ranges if search.searcher == "grid" else ():
        allowed = f"random or optuna, because {dimension.name} is a range ({dimension.kind})"
        yield Problem("searcher", "grid", allowed, others=("space",))
    if search.searcher == "optuna" and importlib.util.find_spec("optuna") is None:
        reason = (
            "which is not installed; allowed: grid, random, or first "
            'pip install -c constraints.txt "optuna>=4,<5" (the extra optuna)'
        )
        yield Problem("searcher", "optuna", reason=reason)
    yield from _value_problems(Checker(base, space), space)


def idle_in_trials(run: RunConfig) -> dict[str, Problem | None]:
    """Return the options that do nothing in the trials, each with the reason.

    None stands for an option that does nothing with the base settings and something in the
    trials: it may be given.
    """
    if run.search.space is None:
        return {}
    try:
        space = read_space(run.search.space)
    except ConfigError:
        return {}  # search_problems says what is wrong with it
    checker, source = Checker(trial_base(run), space), random.Random(0)
    idle: list[dict[str, Problem]] = []
    for _ in range(_TRIES):
        try:
            trial = checker.settle(draw(checker, source), sizes=False).config
        except InvalidCandidateError:
            continue
        idle.append(without_effect(trial.model_copy(update={"search": run.search})))
    always = set.intersection(*map(set, idle)) if idle else set[str]()
    before = without_effect(run).keys()
    found: dict[str, Problem | None] = dict.fromkeys(before - always if idle else ())
    for name in always - before:
        others = {other for one in idle for other in one[name].others}
        found |= no_effect([name], f"no trial of the space {space.name} uses it", "space", *others)
    searched = {one.name for one in space.dimensions if not one.when}
    searched.update(*named_networks(space))
    if space.constraints.match_parameters is not None:
        searched.add(space.constraints.width)
    return found | no_effect(searched, f"the space {space.name} says it for every trial", "space")


def _value_problems(checker: Checker, space: Space) -> Iterator[Problem]:
    """Yield the values of ``space`` that no valid trial has, each with the reason."""
    for dimension in space.dimensions:
        tested = dimension.choices
        if dimension.kind != "choices":
            ends = (dimension.low, dimension.high)
            tested = tuple(int(end) for end in ends) if dimension.whole else ends
        reasons = {value: _why_never(checker, dimension, value) for value in tested}
        if dimension.kind != "choices" and not all(reasons.values()):
            continue  # a range may reach too far: what breaks a rule is drawn again
        for value, why in reasons.items():
            if why is not None:
                reason = f"{dimension.name} {value!r} is in no valid trial: {why}"
                yield Problem(where=f"space {space.name}", reason=reason, others=why.options)


def _why_never(
    checker: Checker, dimension: Dimension, value: object
) -> InvalidCandidateError | None:
    """Return why no valid trial has ``value``, or nothing if one has it."""
    source, reason = random.Random(0), InvalidCandidateError("its conditions never hold")
    for _ in range(_TRIES):
        settings = draw(checker, source, **{dimension.name: value})
        if dimension.name not in settings:
            continue
        try:
            candidate = checker.settle(settings, sizes=False)
        except InvalidCandidateError as error:
            reason = error
            continue
        if dimension.name in candidate.settings:
            return None
        reason = InvalidCandidateError(
            "it has no effect with the others (give it a condition with when)"
        )
    return reason
