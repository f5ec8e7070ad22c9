"""Which sources of a track are scored against which: museval's rules, and one against the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lasaft.errors import ConfigError
from lasaft.targets import members, rest_of
from pipeline.evaluation.summary import Scenario

ACCOMPANIMENT = "accompaniment"
_VOCALS = "vocals"
Waves = Mapping[str, np.ndarray]  # source -> [channel, sample]
Pair = tuple[np.ndarray, np.ndarray]  # reference and estimate, alike


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
    interference has nowhere to come from: here that one is scored against the sum of all others, as
    each source is with ``target_rest``.

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
    return "sources" if len(sources) > 1 and wanted == "sources" else "target_rest"


def scored_names(
    scenario: Scenario, sources: Sequence[str], sets: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the names that get scores, in the order of the file."""
    with_it = scenario == "vocals_accompaniment"
    return (*sources, *([ACCOMPANIMENT] if with_it else []), *sets)


def single_sources(names: Sequence[str]) -> list[str]:
    """Return the scored names that are no sum of others, and so count in averages.

    >>> single_sources(["vocals", "drums", "accompaniment", "vocals+drums"])
    ['vocals', 'drums']
    """
    return [name for name in names if name != ACCOMPANIMENT and not _is_set(name, names)]


def _is_set(name: str, names: Sequence[str]) -> bool:
    return bool(members(name, [other for other in names if other != name]))


@dataclass(frozen=True)
class Attempt:
    """What one system made of a track, beside what there is to be found.

    Attributes:
        scenario: how the sources are scored.
        sources: names of those to score.
        sets: of sources that are scored too.
        references: [channel, sample] of every source of the track.
        estimates: [channel, sample] of the sources to score, and of any others or sums of them.
        mixture: [channel, sample].
    """

    scenario: Scenario
    sources: Sequence[str]
    sets: Sequence[str]
    references: Waves
    estimates: Waves
    mixture: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """The names that get scores."""
        return scored_names(self.scenario, self.sources, self.sets)

    def pair(self, name: str) -> Pair:
        """Return reference and estimate of a source, a set, or the accompaniment.

        Estimates are cut or padded with silence to the track. That of a sum is, in this order: one
        of its own, the sum of those of its sources where all are there, what the estimate of all
        others leaves of the mixture.
        """
        parts = self._parts(name)
        if len(parts) == 1 and name in self.estimates:
            return self.references[name], self._fitted(name)
        truth = _sum([self.references[part] for part in parts])
        if name in self.estimates:
            return truth, self._fitted(name)
        if all(part in self.estimates for part in parts):
            return truth, _sum([self._fitted(part) for part in parts])
        return truth, self.mixture - self.pair(rest_of("+".join(parts), tuple(self.references)))[1]

    def contests(self) -> Iterator[Contest]:
        """Yield which of the track's sources and sets are scored against which.

        A source that is silent throughout the track takes no part: BSS Eval is not defined for it.
        The others are scored among themselves, so there may be no contest at all.

        Source: museval 0.4.1, ``eval_mus_track``: with an accompaniment the vocals' scores come
        from the pair, all others from the sources without the accompaniment.
        """
        whole, against = tuple(self.references), {}
        if self.scenario == "vocals_accompaniment":
            against = {_VOCALS: ACCOMPANIMENT}
        elif self.scenario == "target_rest":
            against = {name: rest for name in self.sources if (rest := rest_of(name, whole))}
        together = [name for name in self.sources if name not in against]
        against |= {name: rest_of(name, whole) for name in self.sets}
        if together:
            yield from self._contest(self.sources, together)
        for one, rest in against.items():
            yield from self._contest((one, rest), [n for n in (one, rest) if n in self.names])

    def _contest(self, names: Sequence[str], kept: Sequence[str]) -> Iterator[Contest]:
        """Yield the contest of those that are not silent, if any of ``kept`` is among them."""
        pairs = {name: self.pair(name) for name in names}
        sounding = [name for name in names if not is_silent(pairs[name][0])]
        kept = [name for name in kept if name in sounding]
        if kept:
            truths, tried = ([pairs[name][side] for name in sounding] for side in (0, 1))
            yield Contest(tuple(sounding), truths, tried, tuple(kept))

    def _parts(self, name: str) -> list[str]:
        whole = tuple(self.references)
        summed = rest_of(_VOCALS, whole) if name == ACCOMPANIMENT else name
        return [whole[place] for place in members(summed, whole)]

    def _fitted(self, name: str) -> np.ndarray:
        wave, samples = self.estimates[name], self.mixture.shape[1]
        missing = samples - wave.shape[1]
        return np.pad(wave, ((0, 0), (0, missing))) if missing > 0 else wave[:, :samples]


def is_silent(wave: np.ndarray) -> bool:
    """Return whether the channels of ``wave`` [channel, sample] add up to zero at every sample.

    Source: museval 0.4.1, ``_any_source_silent``.
    """
    return not np.any(wave.sum(axis=0))


def _sum(waves: list[np.ndarray]) -> np.ndarray:
    """Add in float64: sums of 24-bit samples are not exact in float32."""
    total = waves[0].astype(np.float64)
    for wave in waves[1:]:
        total += wave
    return total
