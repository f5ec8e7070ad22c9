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
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]  # source -> reference and estimate, alike


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


def scored_pairs(
    scenario: Scenario,
    sources: Sequence[str],
    references: Waves,
    estimates: Waves,
    mixture: np.ndarray,
) -> Pairs:
    """Return reference and estimate of all that takes part in scoring, its name first.

    Estimates are cut or padded with silence to the track. That of all sources but one is, in this
    order: an estimate of the accompaniment, the sum of the estimates of the others where all are
    there, what the one leaves of the mixture.

    Args:
        scenario: how the sources are scored.
        sources: names of those to score.
        references: [channel, sample] of every source of the track.
        estimates: [channel, sample] of the sources to score, and of any others.
        mixture: [channel, sample].
    """
    fitted = {name: _fitted(wave, mixture.shape[1]) for name, wave in estimates.items()}
    pairs = {name: (references[name], fitted[name]) for name in sources}
    if scenario == "sources":
        return pairs
    one, all_others = _opponents(scenario, sources)
    others = [name for name in references if name != one]
    if ACCOMPANIMENT in fitted:
        rest = fitted[ACCOMPANIMENT]
    elif all(name in fitted for name in others):
        rest = _sum([fitted[name] for name in others])
    else:
        rest = mixture - fitted[one]
    return {**pairs, all_others: (_sum([references[name] for name in others]), rest)}


def contests(scenario: Scenario, sources: Sequence[str], pairs: Pairs) -> list[Contest]:
    """Return which of the ``pairs`` of a track are scored against which.

    A source that is silent throughout the track takes no part: BSS Eval is not defined for it. The
    others are scored among themselves, so there may be no contest at all.

    Source: museval 0.4.1, ``eval_mus_track``: with an accompaniment the vocals' scores come from
    the pair, all others from the sources without the accompaniment.
    """
    sounding = [name for name in sources if not is_silent(pairs[name][0])]
    if scenario == "sources" or not sounding:
        return [_contest(pairs, sounding, sounding)] if sounding else []
    opponents = _opponents(scenario, sources)
    both = [name for name in opponents if not is_silent(pairs[name][0])]
    pair = _contest(pairs, both, [name for name in both if name != _REST])
    kept = [name for name in sounding if name != opponents[0]]
    return [_contest(pairs, sounding, kept), pair] if kept else [pair]


def _opponents(scenario: Scenario, sources: Sequence[str]) -> tuple[str, str]:
    """Return the source that is scored against the sum of all others, and the name of that."""
    return (sources[0], _REST) if scenario == "target_rest" else (_VOCALS, ACCOMPANIMENT)


def _contest(pairs: Pairs, names: Sequence[str], kept: Sequence[str]) -> Contest:
    truths, tried = ([pairs[name][side] for name in names] for side in (0, 1))
    return Contest(tuple(names), truths, tried, tuple(kept))


def is_silent(wave: np.ndarray) -> bool:
    """Return whether the channels of ``wave`` [channel, sample] add up to zero at every sample.

    Source: museval 0.4.1, ``_any_source_silent``.
    """
    return not np.any(wave.sum(axis=0))


def _fitted(wave: np.ndarray, samples: int) -> np.ndarray:
    missing = samples - wave.shape[1]
    return np.pad(wave, ((0, 0), (0, missing))) if missing > 0 else wave[:, :samples]


def _sum(waves: list[np.ndarray]) -> np.ndarray:
    """Add in float64: sums of 24-bit samples are not exact in float32."""
    total = waves[0].astype(np.float64)
    for wave in waves[1:]:
        total += wave
    return total
