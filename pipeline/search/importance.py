"""How much each option of a space matters to the result, from the trials that there are."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pipeline.search.trials import Trial

# With fewer trials the shares would be noise.
FEWEST_TRIALS = 8
_MOST_GROUPS = 4


@dataclass(frozen=True)
class Importance:
    """How much one option decides the first objective."""

    name: str
    share: float  # share of the variance that lies between its values (epsilon squared, from 0)
    p: float  # chance of such a difference if the option did nothing (Kruskal-Wallis)
    trials: int  # that have the option
    # Its importance by Optuna's functional ANOVA, where it can be computed.
    fanova: float | None = None


def importances(trials: Sequence[Trial], objective: str) -> list[Importance]:
    """Return the options by their share of the variance, the largest first; too few trials: none.

    An option counts over the trials that have it: conditional options are not lost. A range is
    cut into groups with equal numbers of trials.
    """
    scored = [(one, figure) for one in trials if (figure := one.figure(objective)) is not None]
    if len(scored) < FEWEST_TRIALS:
        return []
    names = dict.fromkeys(name for trial, _ in scored for name in trial.settings)
    fanova = _fanova(scored)
    found = []
    for name in names:
        pairs = [(one.settings[name], score) for one, score in scored if name in one.settings]
        groups = _groups(pairs)
        if len(groups) > 1:
            share, p = _share(groups)
            found.append(Importance(name, share, p, len(pairs), fanova.get(name)))
    return sorted(found, key=lambda one: (-one.share, one.name))


def _groups(pairs: Sequence[tuple[Any, float]]) -> list[list[float]]:
    values = [value for value, _ in pairs]
    different = list(dict.fromkeys(values))
    if _numeric(values) and len(different) > _MOST_GROUPS:
        order = sorted(pairs)
        parts = np.array_split(np.array([score for _, score in order]), _MOST_GROUPS)
        return [part.tolist() for part in parts if len(part)]
    return [[score for value, score in pairs if value == each] for each in different]


def _share(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return epsilon squared (the between-group share without its bias) and the p-value."""
    everything = np.concatenate([np.asarray(group) for group in groups])
    total = float(((everything - everything.mean()) ** 2).sum())
    free = len(everything) - len(groups)
    if not total or not free:
        return 0.0, 1.0
    within = sum(float(((np.asarray(g) - np.mean(g)) ** 2).sum()) for g in groups)
    share = (total - within - (len(groups) - 1) * within / free) / total
    return max(0.0, share), float(stats.kruskal(*groups).pvalue)


def _fanova(scored: Sequence[tuple[Trial, float]]) -> dict[str, float]:
    """Return Optuna's importances of the options that all trials have; none without Optuna."""
    if importlib.util.find_spec("optuna") is None:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = set.intersection(*(set(trial.settings) for trial, _ in scored))
    columns = {name: _column([trial.settings[name] for trial, _ in scored]) for name in names}
    study = optuna.create_study()
    for number, (_, score) in enumerate(scored):
        params = {name: values[number] for name, (values, _) in columns.items()}
        kinds = {name: kind for name, (_, kind) in columns.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=kinds, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def _column(values: Sequence[Any]) -> tuple[list[Any], Any]:
    """Return an option's values as Optuna takes them, and what it calls their kind."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if _numeric(values):
        numbers = [float(value) for value in values]
        return numbers, FloatDistribution(min(numbers), max(numbers))
    texts = [str(value) for value in values]
    return texts, CategoricalDistribution(sorted(set(texts)))


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
