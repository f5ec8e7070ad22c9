"""Which sources of a track are scored against which: museval's rules, and one source alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lasaft.errors import ConfigError
from pipeline.evaluation.summary import Scenario

ACCOMPANIMENT = "accompaniment"
_VOCALS, _REST = "vocals", "the rest"
Waves = Mapping[str, np.ndarray]  # source -> [channel, sample]


@dataclass(frozen=True)
class Contest:
    """Sources that are scored against each other: what leaks between them is interference.

    Args:
        names: of the sources.
        references: [channel, sample] of each.
        estimates: [channel, sample] of each.
        kept: names of those whose scores count.
    """

    names: tuple[str, ...]
    references: list[np.ndarray]
    estimates: list[np.ndarray]
    kept: tuple[str, ...]


def scenario_of(wanted: str, sources: Sequence[str]) -> Scenario:
    """Return how ``sources`` are scored.

    museval scores the sources that it is given against each other. It refuses a single one, whose
    interference has nowhere to come from: here that one is scored against the sum of all others.

    Raises:
        ConfigError: the accompaniment is asked for, but vocals are not scored.
    """
    if wanted == "vocals_accompaniment":
        if _VOCALS not in sources:
            raise ConfigError(
                f"scenario: got {wanted}, allowed: only where vocals are scored, not with "
                f"{', '.join(sources)} alone"
            )
        return "vocals_accompaniment"
    return "sources" if len(sources) > 1 else "target_rest"


def scored_names(scenario: Scenario, sources: Sequence[str]) -> tuple[str, ...]:
    """Return the names that get scores, in the order of the file."""
    with_it = scenario == "vocals_accompaniment"
    return (*sources, ACCOMPANIMENT) if with_it else tuple(sources)


def contests(
    scenario: Scenario, references: Waves, estimates: Waves, rest: Sequence[np.ndarray]
) -> list[Contest]:
    """Return what is scored against what.

    Args:
        scenario: how the sources are scored.
        references: the sources to score.
        estimates: of the same sources.
        rest: reference and estimate of the sum of all sources but one: of all but the vocals, or
            of all but the single source. Empty where all sources are scored against each other.

    Source: museval 0.4.1, ``eval_mus_track``: with an accompaniment the vocals' scores come from
    the pair, all others from the sources without the accompaniment.
    """
    names = tuple(references)
    together = Contest(names, list(references.values()), list(estimates.values()), names)
    if scenario == "sources":
        return [together]
    one = names[0] if scenario == "target_rest" else _VOCALS
    other = _REST if scenario == "target_rest" else ACCOMPANIMENT
    pair = Contest(
        (one, other),
        [references[one], rest[0]],
        [estimates[one], rest[1]],
        (one,) if scenario == "target_rest" else (one, other),
    )
    others = tuple(name for name in names if name != one)
    if not others:
        return [pair]
    return [Contest(names, together.references, together.estimates, others), pair]
