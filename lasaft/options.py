"""The table of options that a configuration class defines: names, ranges, texts, problems."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lasaft.errors import ConfigError, Problem

Kind = Literal[
    "bool",
    "int",
    "float",
    "text",
    "path",
    "choice",
    "ints",
    "floats",
    "names",
    "pair",
    "range",
    "place",
]
Raw = str | list[str] | None

_PLAIN_KINDS: dict[Any, Kind] = {
    bool: "bool", int: "int", float: "float", str: "text", Path: "path",
}  # fmt: skip
_UNIONS: dict[Any, Kind] = {(int, str): "range", (Path, str): "place"}
# What an address with a typo begins with: s3:/bucket, gs:bucket, s3//bucket. Path makes one of s3://.
MISTYPED = re.compile(r"[A-Za-z][\w+.-]+:/|(s3|s3a|gs|gcs|abfss?|az|hdfs|file)(:|;|//)", re.I)
_IN_WORDS: dict[Kind, str] = {
    "bool": "True or False",
    "ints": "whole numbers with commas between, such as 0,1",
    "floats": "numbers{range} with commas between, such as 2,1,0.5",
    "names": "names with commas between, such as vocals,drums",
    "pair": "two numbers{range} with a comma between, such as 0.9,0.999",
    "path": "a path",
    "place": "a path, or an address such as s3://bucket/folder",
    "text": "a text",
}
_BOOLEANS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
_NONE_WORDS = ("None", "none", "null")
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_LIST_BRACKETS = {"[": "]", "(": ")"}


@dataclass(frozen=True)
class Option:
    """One leaf of the configuration tree; ``section`` is empty for a leaf of its root."""

    section: str
    name: str
    kind: Kind
    default: Any
    description: str
    role: str = "result"
    optional: bool = False
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    low_excluded: bool = False

    @property
    def path(self) -> str:
        """The dotted name: ``model.n_fft``."""
        return f"{self.section}.{self.name}" if self.section else self.name

    def value_in(self, tree: BaseModel) -> Any:
        """Return its value in a configuration."""
        return getattr(getattr(tree, self.section) if self.section else tree, self.name)

    @property
    def allowed(self) -> str:
        """What the option takes, in words."""
        return self._allowed_values() + (", or None" if self.optional else "")

    def _allowed_values(self) -> str:
        match self.kind:
            case _ if self.choices:
                return ", ".join(self.choices)
            case "int" | "float" | "range":
                noun = "a number" if self.kind == "float" else "a whole number"
                span = ", or MIN:MAX, such as 1:4" if self.kind == "range" else ""
                return f"{noun}{self._range_in_words()}{span}"
            case _:
                return _IN_WORDS[self.kind].format(range=self._range_in_words())

    def _range_in_words(self) -> str:
        if self.low is None:
            return "" if self.high is None else f" up to {self.high:g}"
        if self.low_excluded:
            return f" above {self.low:g}" + ("" if self.high is None else f", up to {self.high:g}")
        if self.high is None:
            return f" of at least {self.low:g}"
        return f" from {_plain(self.low)} to {_plain(self.high)}"


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def options_of(tree: type[BaseModel]) -> dict[str, Option]:
    """Return every option of ``tree`` by its leaf name.

    Raises:
        AssertionError: two leaves have the same name, or one has the name of a section.
    """
    options: dict[str, Option] = {}
    sections = sections_of(tree)
    for section, cls in {"": tree, **sections}.items():
        for name, field in cls.model_fields.items():
            if not section and name in sections:
                continue
            assert name not in options, f"two options are called {name}"
            assert name not in sections, f"an option has the name of the group {name}"
            options[name] = _option(section, name, field)
    return options


def sections_of(tree: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the groups of ``tree``: its fields that are configuration classes themselves."""
    return {
        name: field.annotation
        for name, field in tree.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _option(section: str, name: str, field: FieldInfo) -> Option:
    extra = field.json_schema_extra
    assert isinstance(extra, dict), f"{name}: is not declared with option(), which gives a role"
    role = str(extra["role"])
    option = Option(section, name, "text", field.default, field.description or "", role)
    option = _limited(option, field.metadata)
    return _typed(option, field.annotation)


def _limited(option: Option, metadata: Iterable[Any]) -> Option:
    for item in metadata:
        if isinstance(item, FieldInfo):
            option = _limited(option, item.metadata)
        if (low := getattr(item, "ge", None)) is not None:
            option = replace(option, low=low)
        if (low := getattr(item, "gt", None)) is not None:
            option = replace(option, low=low, low_excluded=True)
        if (high := getattr(item, "le", None)) is not None:
            option = replace(option, high=high)
    return option


def _typed(option: Option, annotation: Any) -> Option:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _typed(_limited(option, parts[1:]), parts[0])
    if origin in (typing.Union, types.UnionType):
        inner = [part for part in parts if part is not type(None)]
        if tuple(inner) in _UNIONS:
            return replace(option, kind=_UNIONS[tuple(inner)], optional=len(inner) < len(parts))
        assert len(inner) == 1, f"{option.name}: a union that has no text form"
        return _typed(replace(option, optional=len(inner) < len(parts)), inner[0])
    if origin is Literal:
        kind: Kind = "bool" if True in parts else "choice"
        return replace(option, kind=kind, choices=tuple(str(part) for part in parts))
    if origin is tuple:
        of_each = _typed(option, parts[0])
        lists: dict[Kind, Kind] = {"int": "ints", "float": "floats", "text": "names"}
        kind = lists[of_each.kind] if Ellipsis in parts else "pair"
        return replace(of_each, kind=kind)
    return replace(option, kind=_PLAIN_KINDS[annotation])


def value_of(option: Option, raw: Raw) -> Any:
    """Return the typed value of what a person wrote; what has no such value comes back as it is.

    Text that does not fit is left for the strict validation to refuse, so that all problems are
    reported in one place.
    """
    listed = option.kind in ("ints", "floats", "names", "pair")
    if isinstance(raw, list):
        return _items(option, raw) if listed else raw
    if raw is None or (option.optional and raw in _NONE_WORDS):
        return None
    if listed:
        return _items(option, _list_items(raw.strip()))
    return _scalar(option.kind, raw.strip(), raw)


def _scalar(kind: Kind, text: str, raw: str) -> Any:
    value: Any = raw
    if kind == "bool":
        value = _BOOLEANS.get(text, raw)
    elif kind in ("int", "range") and _INTEGER.fullmatch(text):
        value = int(text)
    elif kind == "float" and _NUMBER.fullmatch(text):
        value = float(text)
    elif not text:
        value = 0  # an empty path would mean the current folder, which nobody means: refused
    elif kind == "path" or (kind == "place" and "://" not in text and not MISTYPED.match(text)):
        value = Path(text).expanduser().absolute()
    elif kind in ("text", "choice", "range", "place"):
        value = text
    return value


def _list_items(text: str) -> list[str]:
    if text and _LIST_BRACKETS.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
        if not text:
            return []
    items = [item.strip() for item in text.split(",")]
    return [item[1:-1] if re.fullmatch(r"'.*'|\".*\"", item) else item for item in items]


def _items(option: Option, items: list[str]) -> Any:
    if option.kind != "names":
        kind: Kind = "int" if option.kind == "ints" else "float"
        return tuple(item and _scalar(kind, item, item) for item in items)
    return tuple(item or 0 for item in items)


_MOST_DETAILS = 1000  # there are fewer options; what was meant is sought for each


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the known words close to ``word``, or nothing."""
    by_folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_folded, n=2, cutoff=0.6)
    if not close:
        return ""
    return f"; did you mean {' or '.join(by_folded[name] for name in close)}?"


def no_such_option(
    typed: str, options: Mapping[str, Option], others: Iterable[str] = ()
) -> Problem:
    """Return the problem of a name that no option has, with the nearest one or other word."""
    leaf = typed.rpartition(".")[2]
    hint = f"; did you mean {options[leaf].path}?" if leaf in options else ""
    return Problem(typed, reason=f"no such option{hint or did_you_mean(leaf, [*options, *others])}")


def problems_of(
    error: ValidationError, options: Mapping[str, Option], written: Mapping[str, str] | None = None
) -> list[Problem]:
    """Return the problems in ``error``: option, value got, what is allowed.

    Args:
        error: what pydantic found.
        options: the table of options by leaf name.
        written: by leaf name, the text that a person wrote for it and where.
    """
    details = error.errors()
    looked_at = details[:_MOST_DETAILS]
    found = [problem for one in looked_at for problem in _found(one, options, written or {})]
    if len(details) > len(looked_at):
        found.append(Problem(reason=f"and {len(details) - len(looked_at)} more"))
    return list(dict.fromkeys(found))


def _found(
    detail: Mapping[str, Any], options: Mapping[str, Option], written: Mapping[str, str]
) -> Iterator[Problem]:
    names = [str(part) for part in detail["loc"] if isinstance(part, str)]
    name = names[-1] if names else ""
    dotted = ".".join(names)
    option = options.get(name)
    if detail["type"] == "value_error":
        refusal = detail["ctx"]["error"]
        assert isinstance(refusal, ConfigError), f"{dotted}: a refusal without its records"
        yield from refusal.problems
    elif detail["type"] == "extra_forbidden":
        yield no_such_option(dotted, options)
    elif option is None:
        yield Problem(dotted or "config", reason=detail["msg"].lower())
    else:
        got = written.get(name, repr(detail["input"]))
        hint = ""
        if option.choices and isinstance(detail["input"], str):
            hint = did_you_mean(detail["input"], option.choices)
        yield Problem(name, got, option.allowed + hint)
