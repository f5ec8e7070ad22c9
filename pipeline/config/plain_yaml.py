"""YAML read as plain text, so that no tag, anchor or YAML type in a file of others has a say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
_LARGEST_BYTES = 1_000_000


class _PlainLoader(yaml.BaseLoader):
    """Composes nodes only; anchors, which can make a small file huge, are refused."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(problem="anchors (&, *)", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


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


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        return f"line {mark.line + 1}: {error.problem}"
    return (
        "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
    )
