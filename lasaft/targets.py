"""What is asked of a network by name: a source, or a set of sources whose sum is wanted."""

from __future__ import annotations

from collections.abc import Sequence


def members(target: str, sources: Sequence[str]) -> tuple[int, ...]:
    """Return the places in ``sources`` of what a target is the sum of; none if it is unknown.

    A target is the name of a source, or several with + between them, each once. Names may hold a +
    themselves: the longest one that leaves names is taken.

    >>> members("bass+vocals", ("vocals", "drums", "bass", "other"))
    (2, 0)
    >>> members("bass+flute", ("vocals", "drums", "bass", "other"))
    ()
    """
    if target in sources:
        return (sources.index(target),)
    parts = target.split("+")
    for count in reversed(range(1, len(parts))):
        if (first := "+".join(parts[:count])) in sources:
            rest = members("+".join(parts[count:]), sources)
            if rest and sources.index(first) not in rest:
                return (sources.index(first), *rest)
    return ()


def targets_in_words(sources: Sequence[str]) -> str:
    """Say what may be asked of a network.

    >>> targets_in_words(("vocals", "drums"))
    'vocals, drums, or some with + between'
    """
    return f"{', '.join(sources)}, or some with + between"


def rest_of(target: str, sources: Sequence[str]) -> str:
    """Return the set of all sources that a target is not the sum of; empty if there is none.

    >>> rest_of("vocals", ("vocals", "drums", "bass", "other"))
    'drums+bass+other'
    """
    chosen = members(target, sources)
    return "+".join(name for place, name in enumerate(sources) if place not in chosen)
