"""Options become one tree of settings, with every problem told at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lasaft.cli.arguments import Given, known_name
from lasaft.errors import Problem
from lasaft.options import Option, problems_of, value_of

Tree = TypeVar("Tree", bound=BaseModel)
Values = dict[str, Any]


class OptionBuilder:
    """Collects options layer by layer (later ones win) and validates them together.

    An option is in doubt once it has a problem: what its value is meant to be is not known. A rule
    that looks at an option in doubt says nothing, so that no problem follows from another.
    """

    def __init__(self, options: Mapping[str, Option]) -> None:
        self.options = options
        self.problems: list[Problem] = []
        self.in_doubt: set[str] = set()
        self._values: Values = {}
        self._written: dict[str, str] = {}

    def add(self, layer: Sequence[Given]) -> None:
        """Put a layer on top, from left to right."""
        for given in layer:
            self.add_values({given.name: value_of(self.options[given.name], given.raw)})
            self._written[given.name] = given.shown

    def add_values(self, values: Mapping[str, Any]) -> None:
        """Put typed values on top, by leaf name."""
        self._values.update(values)
        self.in_doubt -= values.keys()

    def build(self, tree: type[Tree]) -> Tree | None:
        """Validate; problems are added to ``problems``.

        An option with a problem is left out and the rest validated again, so that one wrong
        option hides no other.
        """
        while True:
            try:
                return tree.model_validate(_nested(self._values, self.options))
            except ValidationError as error:
                found = problems_of(error, self.options, self._written)
            self.note(found)
            wrong = {name for problem in found for name in self._at_fault(problem)}
            if not wrong:
                return None
            self.in_doubt |= wrong
            for name in wrong:
                del self._values[name]

    def _at_fault(self, problem: Problem) -> set[str]:
        """Return the options to leave out: the one told of, or those its default clashes with."""
        named = {problem.option} & self._values.keys()
        return named or set(problem.others) & self._values.keys()

    def note(self, problems: Iterable[Problem]) -> None:
        """Add the problems that do not follow from an option in doubt."""
        told = [
            problem
            for problem in dict.fromkeys(problems)
            if problem not in self.problems
            and not self.in_doubt & {problem.option, *problem.others}
        ]
        self.problems += told
        for problem in told:
            name = known_name(problem.option, self.options)
            if name is not None:
                self.in_doubt |= set(self.set_by(name))

    def set_by(self, name: str) -> Collection[str]:
        """Return the options that ``name`` sets."""
        return (name,)


def _nested(values: Values, options: Mapping[str, Option]) -> Values:
    tree: Values = {}
    for name, value in values.items():
        section = options[name].section
        place = tree.setdefault(section, {}) if section else tree
        place[name] = value
    return tree
