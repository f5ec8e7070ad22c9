"""Presets: YAML files with options, read as plain text so that no tag or YAML type has a say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import yaml

import pipeline
from lasaft.cli.arguments import Given, known_name
from lasaft.errors import Problem
from lasaft.options import Option, no_such_option
from pipeline.config.plain_yaml import NULLS, PLAIN_TAGS, NamedFiles, compose_plain

PRESETS = NamedFiles("preset", Path(pipeline.__file__).resolve().parent / "presets")


def read_preset(preset: str, options: Mapping[str, Option]) -> tuple[list[Given], list[Problem]]:
    """Return the options in a preset, by name or file, and what is wrong with its other lines.

    Groups and bare names are the same.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    path, root = PRESETS.read(preset, compose_plain)
    reader = _Reader(path.name, options)
    given = list(reader.options(root, "")) if root is not None else []
    return given, reader.problems


class _Reader:
    """Turns composed YAML into options, collecting every problem."""

    def __init__(self, origin: str, options: Mapping[str, Option]) -> None:
        self.origin, self.known = origin, options
        self.sections = {option.section for option in options.values()} - {""}
        self.problems: list[Problem] = []
        self._seen: set[str] = set()

    def options(self, node: yaml.Node, section: str) -> Iterator[Given]:
        """Yield the options of a mapping; a problem is noted, not raised."""
        if not isinstance(node, yaml.MappingNode) or node.tag not in PLAIN_TAGS:
            reason = "must be a mapping of options"
            self._note(node, Problem(section or "the file", reason=reason))
            return
        for key_node, value in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            if key_node.tag not in PLAIN_TAGS:
                self._note(key_node, Problem(reason=f"the tag {key_node.tag} is refused"))
            elif key in self.sections and isinstance(value, yaml.MappingNode) and not section:
                self._once(key_node, f"{key}:")
                yield from self.options(value, key)
            else:
                yield from self._option(key_node, key, section, value)

    def _option(
        self, key_node: yaml.Node, key: str, section: str, value: yaml.Node
    ) -> Iterator[Given]:
        typed = f"{section}.{key}" if section else key
        name = known_name(typed, self.known)
        if name is None:
            self._note(key_node, no_such_option(typed, self.known))
            return
        self._once(key_node, name)
        if self._is_plain(value, name):
            yield Given(name, _raw(value), self.origin)

    def _once(self, node: yaml.Node, name: str) -> None:
        if name in self._seen:
            self._note(node, Problem(name.rstrip(":"), reason="is given twice"))
        self._seen.add(name)

    def _is_plain(self, node: yaml.Node, name: str) -> bool:
        items = node.value if isinstance(node, yaml.SequenceNode) else []
        for part in (node, *items):
            if part.tag not in PLAIN_TAGS:
                self._note(part, Problem(name, reason=f"the tag {part.tag} is refused"))
                return False
        if isinstance(node, yaml.MappingNode) or not all(
            isinstance(item, yaml.ScalarNode) for item in items
        ):
            wanted = self.known[name].allowed if name in self.known else "the name of a network"
            self._note(node, Problem(name, "a nested value", wanted))
            return False
        return True

    def _note(self, node: yaml.Node, problem: Problem) -> None:
        where = f"{self.origin}, line {node.start_mark.line + 1}"
        self.problems.append(replace(problem, where=where))


def _raw(node: yaml.Node) -> str | list[str] | None:
    if isinstance(node, yaml.SequenceNode):
        return [item.value for item in node.value]
    is_null = getattr(node, "style", None) is None and node.value in NULLS
    return None if is_null else node.value
