"""Reads pickles without running anything that they ask for.

A pickle is a program for a small stack machine. This one knows the instructions that build plain
values; a class or function that the program names becomes an inert stand-in. Names that no
checkpoint needs, such as ``os.system``, end the reading. Each instruction takes a bounded time and
leaves a bounded amount of memory behind, and so many are allowed.
"""

from __future__ import annotations

import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from lasaft.errors import CheckpointError

# What may be named of the standard library: types that hold values. Other packages' names are
# never looked up: they may be anything, but only what looks like a class may be called, and these.
_CALLED = {
    "numpy.dtype", "numpy.ndarray", "torch.device",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_parameter_with_state",
}  # fmt: skip
_HARMLESS = {
    "argparse": {"Namespace"},
    "builtins": {
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
        "object", "range", "set", "slice", "str", "tuple",
    },
    "_codecs": {"encode"},
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "copyreg": {"_reconstructor", "__newobj__"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "functools": {"partial"},
    "inspect": {"_empty"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "types": {"SimpleNamespace"},
    "uuid": {"UUID"},
}  # fmt: skip


# More than any honest pickle has, in characters, arguments and parts.
_LONGEST_NAME, _MOST_ARGUMENTS, _LONGEST_KEY, _LONGEST_REASON = 500, 64, 16, 200


@dataclass(eq=False)
class StandIn:
    """What stands for a class, a function or an object made by one; it does nothing."""

    name: str
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


class Builder(StandIn):
    """A stand-in whose call is allowed: ``make`` is ours and gets the arguments."""

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        super().__init__(name)
        self.make = make


def as_key(value: Any) -> Any:
    """Return ``value`` if it may be a key, or what stands for it.

    To hash tuples within tuples can take for ever, and who chooses tuples or long numbers can let
    all hashes be the same; nobody asks for these keys.
    """
    if isinstance(value, tuple):
        if len(value) > _LONGEST_KEY or any(isinstance(item, tuple) for item in value):
            raise ValueError("a tuple of tuples as a key, or a long one")
        return StandIn("tuple")
    is_long = isinstance(value, int) and value.bit_length() > 64
    return StandIn(type(value).__name__) if is_long or isinstance(value, frozenset) else value


def as_dict(pairs: Iterable[Any]) -> dict[Any, Any]:
    """Return a dict of pairs of a key and a value."""
    return {as_key(key): value for key, value in pairs}


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Their argument is the value.
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
_FROM_MARK = {
    "TUPLE": tuple,
    "LIST": list,
    "FROZENSET": lambda values: frozenset(map(as_key, values)),
}
# What building values of damaged instructions may raise.
_DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError,
)  # fmt: skip
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(
    stream: BinaryIO,
    name: str,
    builders: Mapping[str, Callable[..., Any]],
    persistent: Callable[[Any], Any],
    most: int,
) -> Any:
    """Read one pickle from ``stream`` and leave the stream behind it.

    Args:
        stream: at the pickle's start.
        builders: by dotted name, what the calls that are allowed make of their arguments.
        persistent: makes an object of a persistent id (torch: a storage).
        most: instructions.

    Returns:
        Plain values, what ``builders`` and ``persistent`` made, and stand-ins.

    Raises:
        CheckpointError: it is damaged, or names or does what no checkpoint needs.
    """
    machine = _Machine(name, builders, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.steps += 1
            if machine.steps > most:
                raise CheckpointError(
                    f"{name}: refused: its pickle has more than {most} instructions, which no "
                    "checkpoint of its size needs"
                )
            machine.step(opcode.name, argument)
        return machine.stack[-1]
    except CheckpointError:
        raise
    except _DAMAGE as error:
        reason = str(error)[:_LONGEST_REASON]
        raise CheckpointError(f"{name}: is damaged, its pickle cannot be read: {reason}") from error


class _Machine:
    """The stack machine: one method an instruction or a family of them."""

    def __init__(
        self, name: str, builders: Mapping[str, Callable[..., Any]], persistent: Callable[..., Any]
    ) -> None:
        self.stack: list[Any] = []
        self.steps = self._copied = 0
        self._memo: dict[int, Any] = {}
        self._name, self._builders, self._persistent = name, builders, persistent

    def step(self, opcode: str, argument: Any) -> None:
        """Do one instruction."""
        stack = self.stack
        if opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _FROM_MARK:
            stack.append(_FROM_MARK[opcode](self._pop_mark()))
        elif opcode in _SHORT_TUPLES:
            count = _SHORT_TUPLES[opcode]
            stack.append(tuple(self._pop() for _ in range(count))[::-1])
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            action = getattr(self, f"op_{opcode.lower()}", None)
            if action is None:
                raise CheckpointError(
                    f"{self._name}: refused: its pickle has the instruction {opcode}, which no "
                    "checkpoint needs"
                )
            action(argument)

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def _pop_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def op_mark(self, _: object) -> None:
        self.stack.append(_MARK)

    def op_pop_mark(self, _: object) -> None:
        self._pop_mark()

    def op_pop(self, _: object) -> None:
        self.stack.pop()

    def op_dup(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    def op_memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def op_dict(self, _: object) -> None:
        self.stack.append(self._pop_pairs())

    def op_setitem(self, _: object) -> None:
        value, key = self._pop(), self._pop()
        self._put(as_dict([(key, value)]))

    def op_setitems(self, _: object) -> None:
        self._put(self._pop_pairs())

    def _pop_pairs(self) -> dict[Any, Any]:
        values = self._pop_mark()
        return as_dict(zip(values[::2], values[1::2], strict=True))

    def _put(self, items: dict[Any, Any]) -> None:
        target = self.stack[-1]
        held = target.items if isinstance(target, StandIn) else cast(dict[Any, Any], target)
        held.update(items)

    def op_append(self, _: object) -> None:
        self._extend([self._pop()])

    def op_appends(self, _: object) -> None:
        self._extend(self._pop_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, StandIn):
            target.extend(values)

    def op_additems(self, _: object) -> None:
        values = self._pop_mark()
        if not isinstance(self.stack[-1], StandIn):
            self.stack[-1].update(map(as_key, values))

    def op_binpersid(self, _: object) -> None:
        self.stack.append(self._persistent(self._pop()))

    def op_global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        # Up to protocol 2 a pickle uses Python 2's names.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.stack.append(self._find(module, name))

    def op_stack_global(self, _: object) -> None:
        name, module = self._pop(), self._pop()
        self.stack.append(self._find(module, name))

    def _find(self, module: Any, name: Any) -> StandIn:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        if len(module) + len(name) > _LONGEST_NAME:
            raise ValueError(f"a name of more than {_LONGEST_NAME} characters")
        dotted = f"{module}.{name}"
        if dotted in self._builders:
            return Builder(dotted, self._builders[dotted])
        root = module.partition(".")[0]
        known = root in sys.stdlib_module_names or root in ("__builtin__", "__builtins__")
        # Python itself writes __main__ for the classes of a script; nothing is looked up there.
        if known and root != "__main__" and name not in _HARMLESS.get(module, ()):
            raise self._refusal(f"asks for {dotted}")
        return StandIn(dotted)

    def _refusal(self, does: str) -> CheckpointError:
        return CheckpointError(
            f"{self._name}: refused: it {does} when it is read, which no checkpoint needs. Nothing "
            "of it was run; do not load it with anything else"
        )

    def op_reduce(self, _: object) -> None:
        arguments, function = self._pop(), self._pop()
        self.stack.append(self._call(function, arguments))

    def op_newobj(self, _: object) -> None:
        arguments, kind = self._pop(), self._pop()
        self.stack.append(self._instance(kind, arguments))

    def op_newobj_ex(self, _: object) -> None:
        self._pop()  # arguments by name, which no builder has
        self.op_newobj(None)

    def _instance(self, kind: Any, arguments: tuple[Any, ...]) -> Any:
        """Return an object of a class: the opcode that asks for it cannot call a function."""
        if isinstance(kind, StandIn) and not isinstance(kind, Builder):
            return StandIn(kind.name)
        return self._call(kind, arguments)

    def _call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(function, StandIn) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no class or function")
        if isinstance(function, Builder):
            self._pay_for(arguments)
            return function.make(*arguments)
        if function.name in ("copyreg._reconstructor", "copyreg.__newobj__"):
            return StandIn(arguments[0].name)
        module, _, name = function.name.rpartition(".")
        called = name.lstrip("_")[:1].isupper() or function.name in _CALLED
        if not called and name not in _HARMLESS.get(module, ()):
            raise self._refusal(f"calls {function.name}")
        return StandIn(function.name)

    def _pay_for(self, arguments: tuple[Any, ...]) -> None:
        """Let what calls copy be no more than what the instructions have made."""
        if len(arguments) > _MOST_ARGUMENTS:
            raise ValueError(f"a call with more than {_MOST_ARGUMENTS} arguments")
        self._copied += sum(len(one) for one in arguments if isinstance(one, Sized))
        if self._copied > self.steps:
            raise ValueError("calls with the same long arguments again and again")

    def op_build(self, _: object) -> None:
        state, target = self._pop(), self.stack[-1]
        # Only a stand-in may keep its state: on anything else it could change what is ours.
        if isinstance(target, StandIn):
            target.state = state
