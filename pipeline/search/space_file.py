"""Files with search spaces: found by name, read as plain text so that no YAML type has a say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lasaft.errors import ConfigError
from pipeline.config.options import did_you_mean

FOLDER = Path(__file__).resolve().parents[1] / "spaces"
_LARGEST_BYTES = 1_000_000
_NULLS = ("", "~", "null", "Null", "NULL")
_KINDS = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp")
_PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in _KINDS)


def space_names() -> list[str]:
    """Return the names of the spaces that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_space(name: str) -> Path:
    """Return the file of a space, by name or path.

    Raises:
        ConfigError: there is none.
    """
    names = space_names()
    if name in names:
        return FOLDER / f"{name}.yaml"
    path = Path(name).expanduser()
    if path.is_file():
        return path.absolute()
    if path.exists():
        raise ConfigError(f"space: {name} is a folder, allowed: a YAML file or a space's name")
    raise ConfigError(
        f"space: got {name!r}, allowed: a YAML file, or {', '.join(names)}"
        f"{did_you_mean(name, names)}"
    )


def first_line(path: Path) -> str:
    """Return the first line of a space: what it is about."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()


def read_yaml(path: Path) -> Any:
    """Return the file as mappings, lists, texts and None.

    Raises:
        ConfigError: it cannot be read, is no plain YAML, or a key is there twice.
    """
    try:
        data = path.read_bytes()
        if len(data) > _LARGEST_BYTES:
            raise ConfigError(f"space: {path} is larger than {_LARGEST_BYTES} bytes")
        text = data.decode()
        if any(isinstance(token, yaml.AliasToken | yaml.AnchorToken) for token in yaml.scan(text)):
            raise ConfigError(f"space: {path} is no plain YAML (anchors, & and *)")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if root is None else _plain(root, path)
    except OSError as error:
        raise ConfigError(f"space: {path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        text = " ".join(str(error).split()) or "nested too deeply"
        raise ConfigError(f"space: {path} is no plain YAML ({text})") from error


def _plain(node: yaml.Node, path: Path) -> Any:
    if node.tag not in _PLAIN:
        line = node.start_mark.line + 1
        raise ConfigError(f"space {path.name}, line {line}: the tag {node.tag} is refused")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Any, Any] = {}
        for key_node, value in node.value:
            key = _plain(key_node, path) if isinstance(key_node, yaml.ScalarNode) else "?"
            if key in mapping:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"space {path.name}, line {line}: {key}: is given twice")
            mapping[key] = _plain(value, path)
        return mapping
    is_null = getattr(node, "style", None) is None and node.value in _NULLS
    return None if is_null else node.value
