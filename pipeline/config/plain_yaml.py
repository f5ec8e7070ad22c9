"""YAML read as plain text, so that no tag, anchor or YAML type in a file of others has a say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lasaft.errors import ConfigError, Problem
from lasaft.files import no_file
from lasaft.options import did_you_mean

PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
NULLS = ("", "~", "null", "Null", "NULL")
_LARGEST_BYTES = 1_000_000
_MOST_KEYS = 1000  # there are fewer options; what is wrong with each key is told


class _PlainLoader(yaml.BaseLoader):
    """Composes nodes only; anchors, which can make a small file huge, are refused."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(problem="anchors (&, *)", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.MappingNode) and len(node.value) > _MOST_KEYS:
            problem = f"more than {_MOST_KEYS} keys in a mapping"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.value[-1][0].start_mark)
        return node


def compose_plain(path: Path) -> yaml.Node | None:
    """Return the root node of a YAML file, None if the file is empty.

    Raises:
        ValueError: the file is no plain YAML, or too large; one line.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_LARGEST_BYTES + 1)
    if len(data) > _LARGEST_BYTES:
        raise ValueError(f"is larger than {_LARGEST_BYTES} bytes")
    try:
        return yaml.compose(data.decode(), Loader=_PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"is no plain YAML ({_one_line(error)})") from error


def read_plain(path: Path) -> Any:
    """Return a YAML file as mappings, lists, texts and None.

    Raises:
        ValueError: the file is no plain YAML, too large, or gives a key twice; one line.
        OSError: it cannot be read.
    """
    root = compose_plain(path)
    return None if root is None else _value(root)


def _value(node: yaml.Node) -> Any:
    if node.tag not in PLAIN_TAGS:
        raise _fault(node, f"the tag {node.tag} is refused")
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in NULLS else node.value
    if isinstance(node, yaml.SequenceNode):
        if len(node.value) > _MOST_KEYS:
            raise _fault(node, f"more than {_MOST_KEYS} values in a list")
        return [_value(item) for item in node.value]
    mapping: dict[Any, Any] = {}
    for key_node, item in node.value:
        key = _value(key_node) if isinstance(key_node, yaml.ScalarNode) else "?"
        if key in mapping:
            raise _fault(key_node, f"{key}: is given twice")
        mapping[key] = _value(item)
    return mapping


def _fault(node: yaml.Node, problem: str) -> ValueError:
    return ValueError(f"is no plain YAML (line {node.start_mark.line + 1}: {problem})")


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        return f"line {mark.line + 1}: {error.problem}"
    return (
        "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
    )


@dataclass(frozen=True)
class NamedFiles:
    """YAML files that come with the program, each with a name; others are given by their path."""

    option: str  # that names one of them
    folder: Path

    def names(self) -> list[str]:
        """Return the names of those that come with the program."""
        return sorted(path.stem for path in self.folder.glob("*.yaml"))

    def first_line(self, name: str) -> str:
        """Return the first line of a file, a comment that says what it is."""
        text = (self.folder / f"{name}.yaml").read_text(encoding="utf-8")
        return text.partition("\n")[0].lstrip("# ").strip()

    def find(self, name: str) -> Path:
        """Return a file, by name or path.

        Raises:
            ConfigError: there is none.
        """
        names, path = self.names(), Path(name).expanduser()
        if name in names:
            return self.folder / f"{name}.yaml"
        if path.is_file():
            return path.absolute()
        if path.exists():
            reason, allowed = f"{name} {no_file(path)}", f"a YAML file or a {self.option}'s name"
            raise ConfigError(Problem(self.option, reason=reason, allowed=allowed))
        allowed = f"a YAML file, or {', '.join(names)}{did_you_mean(name, names)}"
        raise ConfigError(Problem(self.option, repr(name), allowed))

    def read(self, name: str, read: Callable[[Path], Any]) -> tuple[Path, Any]:
        """Return a file's path, and what ``read`` makes of it.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        path = self.find(name)
        try:
            return path, read(path)
        except OSError as error:
            reason = f"{path} cannot be read ({error.strerror})"
        except ValueError as error:
            reason = f"{path} {error}"
        raise ConfigError(Problem(self.option, reason=reason))
