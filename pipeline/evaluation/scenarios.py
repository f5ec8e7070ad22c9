"""Which sources of a track are scored against which: museval's rules, and one source alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    scenario: Scenario,
    sources: Sequence[str],
    references: Waves,
    estimates: Waves,
    mixture: np.ndarray,
) -> list[Contest]:
    """Return what is scored against what; estimates are cut or padded with silence to the track.

    A source that is silent throughout the track takes no part: BSS Eval is not defined for it. The
    others are scored among themselves, so there may be no contest at all.

    The estimate of all sources but one is, in this order: an estimate of the accompaniment, the
    sum of the estimates of the others where all are there, what the one leaves of the mixture.

    Args:
        scenario: how the sources are scored.
        sources: names of those to score.
        references: [channel, sample] of every source of the track.
        estimates: [channel, sample] of the sources to score, and of any others.
        mixture: [channel, sample].

    Source: museval 0.4.1, ``eval_mus_track``: with an accompaniment the vocals' scores come from
    the pair, all others from the sources without the accompaniment.
    """
    fitted = {name: _fitted(wave, mixture.shape[1]) for name, wave in estimates.items()}
    sounding = tuple(name for name in sources if not is_silent(references[name]))
    together = Contest(
        sounding,
        [references[name] for name in sounding],
        [fitted[name] for name in sounding],
        sounding,
    )
    if scenario == "sources" or not sounding:
        return [together] if sounding else []
    one = sources[0] if scenario == "target_rest" else _VOCALS
    others = [name for name in references if name != one]
    if ACCOMPANIMENT in fitted:
        rest = fitted[ACCOMPANIMENT]
    elif all(name in fitted for name in others):
        rest = _sum([fitted[name] for name in others])
    else:
        rest = mixture - fitted[one]
    both = {
        one: (references[one], fitted[one]),
        _REST if scenario == "target_rest" else ACCOMPANIMENT: (
            _sum([references[name] for name in others]),
            rest,
        ),
    }
    both = {name: pair for name, pair in both.items() if not is_silent(pair[0])}
    pair = Contest(
        tuple(both),
        [truth for truth, _ in both.values()],
        [tried for _, tried in both.values()],
        tuple(name for name in both if name != _REST),
    )
    kept = tuple(name for name in sounding if name != one)
    return [replace(together, kept=kept), pair] if kept else [pair]


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
