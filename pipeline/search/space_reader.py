"""Search spaces from YAML files, whose every key and value is checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from lasaft.config import VARIANTS
from lasaft.errors import ConfigError, Problem
from lasaft.options import Option, did_you_mean, no_such_option, sections_of, value_of
from pipeline.config import RunConfig, roles
from pipeline.config.plain_yaml import NamedFiles, read_plain
from pipeline.search.space import RANGES, VARIANT, Constraints, Dimension, Space, named_networks

SPACES = NamedFiles("space", Path(__file__).resolve().parents[1] / "spaces")


# What a file of one's own may hold, by an example that is one.
GRAMMAR = """\
options:                            # any option of the network, of training or of drawing
  block: [tfc_tdf, tfc_lasaft]                      # choices: a list of values
  lr: {log: [0.0001, 0.01]}                         # a range, drawn evenly by its logarithm
  remix_probability: {uniform: [0.5, 1]}            # a range, drawn evenly; both ends are in it
  n_internal_layers: {integer: [3, 7], step: 2}     # whole numbers, a step apart
  num_tdfs: {choices: [4, 6], when: {block: tfc_lasaft}}   # where other options have these values
  # model: [CUNET_TFC_FiLM, CUNET_TFC_GPoCM]        # named networks (--help networks), alone
constraints:                        # what breaks one is drawn again; all may be left out
  odd: [n_internal_layers]                          # whole numbers that must be odd
  min_parameters: 1e5                               # the size of the network
  max_parameters: 1e7
  match_parameters: 1e6                             # every network gets this size,
  width: internal_channels                          # by another value of this option
"""


def read_space(name: str) -> Space:
    """Return the space in a file, or the one of that name that comes with the program.

    Raises:
        ConfigError: every problem with the file, its keys and each value.
    """
    path, tree = SPACES.read(name, read_plain)
    reader = _Reader(path.name)
    space = reader.space(tree, path.stem)
    if reader.problems:
        raise ConfigError(reader.problems)
    return space


# By role, why an option cannot be searched.
_REFUSED = {
    "shards": "the shards fix it",
    "seed": "seeds are for repeats (--seeds N), not for settings to choose",
    "ending": "the search gives every trial the same epochs (trial_epochs)",
}
_NOT_COMPARED = "another value of it makes no other network, or one that cannot be compared"


class _Reader:
    """Makes a space of plain YAML and collects every problem with it."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.options = roles.all_options()
        self.problems: list[str] = []

    def space(self, tree: Any, name: str) -> Space:
        """Return the space without what is wrong in it, which is noted."""
        tree = self._mapping(tree, "the file", ("options", "constraints"))
        listed = tree.get("options")
        if not isinstance(listed, dict) or not listed:
            self._note("options: got nothing, allowed: a mapping of options to values")
            listed = {}
        read = [self._dimension(str(key), value) for key, value in listed.items()]
        found = [one for one in read if one is not None]
        dimensions = {one.name: one for one in found}
        if len(dimensions) < len(found):
            self._note("options: an option is there twice, in two ways of writing it")
        constraints = self._constraints(tree.get("constraints") or {})
        if constraints.match_parameters is not None and constraints.width in dimensions:
            self._note(f"width: {constraints.width} is searched itself, so it cannot match sizes")
        space = Space(name, tuple(self._ordered(dimensions)), constraints)
        rows = named_networks(space)
        for one in [one for one in dimensions if any(one in row for row in rows)]:
            self._note(
                f"{one}: is searched, and model too, whose networks set it; allowed: one of them"
            )
        return space

    def _note(self, problem: str | Problem) -> None:
        self.problems.append(f"space {self.origin}: {problem}")

    def _mapping(self, tree: Any, what: str, known: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(tree, dict):
            self._note(f"{what}: must be a mapping with {', '.join(known)}")
            return {}
        for key in [key for key in tree if key not in known]:
            self._note(
                f"{key}: no such key in {what}, allowed: {', '.join(known)}"
                f"{did_you_mean(str(key), known)}"
            )
        return tree

    def _dimension(self, typed: str, value: Any) -> Dimension | None:
        name = typed.rpartition(".")[2].replace("-", "_")
        option = self.options.get(name)
        known = option is not None and typed.replace("-", "_") in (name, option.path)
        if name != VARIANT and not known:
            self._note(no_such_option(typed, self.options))
            return None
        refusal = self._refusal(option)
        if refusal:
            self._note(f"{name}: cannot be searched, because {refusal}")
            return None
        if not isinstance(value, dict):
            return self._choices(name, value, {})
        value = self._mapping(value, name, ("choices", *RANGES, "step", "when"))
        when = self._when(name, value.get("when") or {})
        kinds = [kind for kind in ("choices", *RANGES) if kind in value]
        if len(kinds) != 1:
            got = " and ".join(kinds) or "neither values nor a range"
            self._note(f"{name}: got {got}, allowed: one of choices, {', '.join(RANGES)}")
            return None
        if kinds[0] == "choices":
            return self._choices(name, value["choices"], when)
        return self._range(name, kinds[0], value, when)

    @staticmethod
    def _refusal(option: Option | None) -> str:
        if option is None or roles.is_searched(option):
            return ""
        return _REFUSED.get(option.role, _NOT_COMPARED)

    def _choices(self, name: str, values: Any, when: Any) -> Dimension | None:
        if not isinstance(values, list) or not values:
            self._note(f"{name}: got {values!r}, allowed: a list of one value or more, or a range")
            return None
        typed = [self._value(name, value) for value in values]
        good = [value for value, right in typed if right]
        if len(good) < len(typed):
            return None
        if any(good.count(value) > 1 for value in good):
            self._note(f"{name}: a choice is there twice")
            return None
        return Dimension(name, "choices", tuple(good), when=when)

    def _value(self, name: str, raw: Any) -> tuple[Any, bool]:
        """Return the typed value, and whether it is one that the option takes."""
        if name == VARIANT:
            shards = {*roles.names("shards")}
            names = [name for name, row in VARIANTS.items() if not {*row} & shards]
            if raw in names:
                return raw, True
            fixed = {*VARIANTS.get(str(raw), {})} & shards
            why = f" (it sets {', '.join(sorted(fixed))}, which the shards fix)" if fixed else ""
            hint = did_you_mean(str(raw), names) if not fixed else ""
            self._note(f"model: got {raw!r}{why}, allowed: {', '.join(names)}{hint}")
            return raw, False
        option = self.options[name]
        field_info = sections_of(RunConfig)[option.section].model_fields[name]
        value = value_of(option, raw) if raw is None or isinstance(raw, str | list) else raw
        kind: Any = field_info.annotation
        for limit in field_info.metadata:
            kind = Annotated[kind, limit]
        try:
            value = TypeAdapter(kind).validate_python(value, strict=True)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError
        except (ValidationError, ValueError):
            hint = did_you_mean(str(raw), option.choices) if option.choices else ""
            self._note(f"{name}: got {raw!r}, allowed: {option.allowed}{hint}")
            return value, False
        return value, True

    def _range(self, name: str, kind: Any, value: dict[str, Any], when: Any) -> Dimension | None:
        option = self.options.get(name)
        ends, step = value[kind], value.get("step", "1")
        if option is None or option.kind not in ("int", "float"):
            self._note(f"{name}: got a range ({kind}), allowed: choices")
        elif kind != "log" and (kind == "integer") != (option.kind == "int"):
            fitting = "integer" if option.kind == "int" else "uniform"
            self._note(f"{name}: got {kind}, allowed: {fitting}, log or choices")
        elif not isinstance(ends, list) or len(ends) != 2:
            self._note(f"{name}: got {kind} {ends!r}, allowed: two ends, such as [1, 10]")
        elif not str(step).isdigit() or int(step) < 1 or ("step" in value and kind != "integer"):
            self._note(f"{name}: got step {step!r}, allowed: with integer, a whole number above 0")
        else:
            typed = [self._value(name, end) for end in ends]
            if not all(right for _, right in typed):
                return None
            low, high = (end for end, _ in typed)
            if low is not None and high is not None and low < high and (kind != "log" or low > 0):
                whole = option.kind == "int"
                return Dimension(name, kind, (), low, high, int(step), whole, when)
            above = " above 0" if kind == "log" else ""
            self._note(f"{name}: got {kind} {ends!r}, allowed: a lower and a higher end{above}")
        return None

    def _when(self, name: str, value: Any) -> dict[str, tuple[Any, ...]]:
        if not isinstance(value, dict):
            self._note(f"{name}: when: got {value!r}, allowed: options with values")
            return {}
        conditions: dict[str, tuple[Any, ...]] = {}
        for typed, listed in value.items():
            other = str(typed).rpartition(".")[2].replace("-", "_")
            if other not in self.options and other != VARIANT:
                self._note(f"{name}: when: {no_such_option(str(typed), self.options)}")
                continue
            if other == name:
                self._note(f"{name}: when: names itself")
                continue
            values = listed if isinstance(listed, list) else [listed]
            found = [self._value(other, each) for each in values]
            if not values:
                self._note(f"{name}: when {other}: got no value, allowed: one or more")
            conditions[other] = tuple(each for each, right in found if right)
        return conditions

    def _ordered(self, dimensions: dict[str, Dimension]) -> Iterator[Dimension]:
        """Yield each dimension after those that its conditions name; a circle is noted."""
        rest = dict(dimensions)
        while rest:
            ready = next((one for one in rest.values() if not one.when.keys() & rest.keys()), None)
            if ready is None:
                self._note(f"when: {', '.join(rest)} wait for each other")
                return
            yield rest.pop(ready.name)
            self._require_reachable(ready, dimensions)

    def _require_reachable(self, one: Dimension, dimensions: dict[str, Dimension]) -> None:
        """Note the conditions of ``one`` that no value of the space can meet."""
        for other, values in one.when.items():
            parent = dimensions.get(other)
            if parent and parent.kind == "choices" and not set(values) & set(parent.choices):
                shown = ", ".join(map(str, values))
                self._note(f"{one.name}: when {other}: {shown}: the space has no such value of it")

    def _constraints(self, tree: Any) -> Constraints:
        names = ("odd", "min_parameters", "max_parameters", "match_parameters", "width")
        tree = self._mapping(tree, "constraints", names)
        odd = tree.get("odd") or []
        odd = [str(name) for name in (odd if isinstance(odd, list) else [odd])]
        whole = {name: option for name, option in self.options.items() if option.kind == "int"}
        for name in [name for name in odd if name not in whole]:
            hint = did_you_mean(name, self.options)
            self._note(f"odd: got {name!r}, allowed: options that are whole numbers{hint}")
        sizes = {name: self._size(name, tree[name]) for name in names[1:4] if name in tree}
        width = str(tree.get("width", "internal_channels"))
        if "width" in tree and "match_parameters" not in tree:
            self._note("width: has no effect without match_parameters; leave it out")
        if width not in whole or whole[width].section != "model":
            hint = did_you_mean(width, self.options)
            self._note(f"width: got {width!r}, allowed: a whole-number option of the network{hint}")
        low, high, wanted = (sizes.get(name) for name in names[1:4])
        if low is not None and high is not None and low > high:
            self._note(f"min_parameters: got {low:g}, allowed: at most max_parameters ({high:g})")
        if wanted is not None and not (low or 0) <= wanted <= (high or math.inf):
            self._note(
                f"match_parameters: got {wanted:g}, allowed: from min_parameters to max_parameters"
            )
        return Constraints(tuple(odd), low, high, wanted, width)

    def _size(self, name: str, raw: Any) -> float | None:
        value = value_of(Option("", name, "float", None, ""), raw) if isinstance(raw, str) else raw
        if isinstance(value, float) and 1 <= value < math.inf:
            return value
        self._note(f"{name}: got {raw!r}, allowed: a number of parameters of at least 1")
        return None
