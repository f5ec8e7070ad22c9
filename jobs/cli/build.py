"""Options as people wrote them become a validated configuration, or all problems at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from jobs.cli.arguments import VARIANT, Given
from lasaft.config import VARIANTS
from lasaft.errors import ConfigError
from pipeline.config import RunConfig
from pipeline.config.options import Option, did_you_mean, problems_of, value_of

Tree = TypeVar("Tree", bound=RunConfig)
Values = dict[str, Any]


class Builder:
    """Collects options layer by layer (later ones win) and validates them together."""

    def __init__(self, options: Mapping[str, Option]) -> None:
        self.options = options
        self.problems: list[str] = []
        self._values: Values = {}
        self._written: dict[str, str] = {}
        self._dropped: list[str] = []

    def add(self, layer: Sequence[Given]) -> None:
        """Put a layer on top: its network's name first, then its options from left to right."""
        for given in layer:
            if given.name == VARIANT:
                self._add_variant(given)
        for given in layer:
            if given.name != VARIANT:
                self._values[given.name] = value_of(self.options[given.name], given.raw)
                self._written[given.name] = given.shown

    def add_values(self, values: Mapping[str, Any]) -> None:
        """Put typed values on top, by leaf name."""
        self._values.update(values)

    def _add_variant(self, given: Given) -> None:
        row = VARIANTS.get(given.raw) if isinstance(given.raw, str) else None
        if row is None:
            hint = did_you_mean(str(given.raw), VARIANTS)
            self.problems.append(f"model: got {given.shown}, allowed: {', '.join(VARIANTS)}{hint}")
        else:
            self.add_values(row)

    def build(self, tree: type[Tree]) -> Tree | None:
        """Validate; problems are added to ``problems``.

        An option with a problem is left out and the rest validated again, so that one wrong
        option hides no other. What is found then counts unless it speaks of an option left out.
        """
        while True:
            try:
                return tree.model_validate(_nested(self._values, self.options))
            except ValidationError as error:
                lines = problems_of(error, self.options, self._written)
            self.note(lines)
            wrong = self._at_fault({line.partition(":")[0] for line in lines})
            if not wrong:
                return None
            for name in wrong:
                del self._values[name]
            self._dropped.extend(wrong)

    def _at_fault(self, subjects: set[str]) -> set[str]:
        """Return the options to leave out: those complained about, or their groups' others."""
        named = subjects & self._values.keys()
        groups = {self.options[name].section for name in subjects & self.options.keys()}
        return named or {name for name in self._values if self.options[name].section in groups}

    def note(self, lines: Sequence[str]) -> None:
        """Add the problems that do not follow from an option left out before."""
        for line in lines:
            words = re.findall(r"\w+", line)
            if line not in self.problems and not any(name in words for name in self._dropped):
                self.problems.append(line)

    def raise_problems(self) -> None:
        """Raise what was found, if anything was.

        Raises:
            ConfigError: all problems.
        """
        if self.problems:
            raise ConfigError(self.problems)


def _nested(values: Values, options: Mapping[str, Option]) -> Values:
    tree: Values = {}
    for name, value in values.items():
        section = options[name].section
        place = tree.setdefault(section, {}) if section else tree
        place[name] = value
    return tree
