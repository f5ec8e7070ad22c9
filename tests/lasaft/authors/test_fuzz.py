"""Files made up at random cost a bounded time and memory, and end in one clear error or a result.

``LASAFT_FUZZ_EXAMPLES=20000`` looks longer.
"""

from __future__ import annotations

import os
import pickletools
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lasaft.authors.importing import import_checkpoint
from lasaft.errors import LasaftError
from tests.helpers.lightning import pickled, save_old_lightning, save_raw_pickle
from tests.helpers.parity import Fixture

pytestmark = [
    pytest.mark.timeout(0),  # each file has a limit of its own
    pytest.mark.filterwarnings("ignore:invalid .*escape sequence"),  # in a text of a pickle
]

_MOST_SECONDS = 20.0
_MOST_BYTES = 500_000  # in one block of a program
_MOST_TIMES_THE_FILE = 3
_ALWAYS_BYTES = 150_000_000  # what the most instructions of a small file may take

_NAMES = [
    "collections OrderedDict", "torch Size", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch._utils _rebuild_tensor",
    "mymodule Thing", "builtins set", "copyreg _reconstructor", "os system", "numpy dtype",
]  # fmt: skip
_TEXTS = st.sampled_from(["storage", "0", "cpu", "state_dict", "hyper_parameters", "a", "x" * 2000])


def _prefixed(form: str) -> Any:
    return _TEXTS.map(lambda text: struct.pack(form, len(text) & 255) + text.encode()[:255])


def _long(form: str) -> Any:
    return st.integers(0, 40).map(lambda count: struct.pack(form, count) + b"\x7f" * count)


def _line(values: Any) -> Any:
    return values.map(lambda value: f"{value}\n".encode())


_SMALL = st.integers(0, 8)
_ARGUMENTS: dict[str, Any] = {
    "uint1": _SMALL.map(lambda n: struct.pack("<B", n)),
    "uint2": st.integers(0, 2**16 - 1).map(lambda n: struct.pack("<H", n)),
    "int4": st.integers(-(2**31), 2**31 - 1).map(lambda n: struct.pack("<i", n)),
    "uint4": _SMALL.map(lambda n: struct.pack("<I", n)),
    "uint8": _SMALL.map(lambda n: struct.pack("<Q", n)),
    "float8": st.floats().map(lambda value: struct.pack(">d", value)),
    "long1": _long("<B"),
    "long4": _long("<i"),
    "stringnl_noescape_pair": st.sampled_from([name.replace(" ", "\n") + "\n" for name in _NAMES])
    .map(str.encode),
    **{name: _prefixed("<B") for name in ("string1", "bytes1", "unicodestring1")},
    **{name: _prefixed("<I") for name in ("string4", "bytes4", "unicodestring4")},
    **{name: _prefixed("<Q") for name in ("bytes8", "unicodestring8", "bytearray8")},
    **{name: _line(_SMALL) for name in ("decimalnl_short", "decimalnl_long", "floatnl")},
    **{name: _line(_TEXTS.map(repr)) for name in ("stringnl",)},
    **{name: _line(_TEXTS) for name in ("unicodestringnl", "stringnl_noescape")},
}  # fmt: skip


def _instruction(opcode: Any) -> Any:
    code = opcode.code.encode("latin-1")
    argument = st.just(b"") if opcode.arg is None else _ARGUMENTS[opcode.arg.name]
    return argument.map(lambda made: code + made)


_INSTRUCTIONS = st.one_of([_instruction(opcode) for opcode in pickletools.opcodes])
# What programs need to get somewhere.
_PHRASES = st.sampled_from([
    b"(", b"}q\x00", b"]q\x01", b")q\x02", b"(h\x02h\x02tq\x02", b"K\x01a", b"K\x01K\x02s",
    b"h\x00", b"h\x01", b"h\x02", b"R", b"\x85R", b"\x93", b"\x94", b"t", b"e", b"u", b"2", b"0",
    b"ccollections\nOrderedDict\n", b"cmymodule\nThing\n", b"ctorch\nSize\n", b"\x8f", b"\x90",
    b"\x91", b"\x81", b"\x92", b"b", b"Q", b"ctorch._utils\n_rebuild_tensor_v2\n", b"K\x00",
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x09tQ",
    b"K\x01\x85", b"\x89}", b"000",
])  # fmt: skip
_BLOCKS = st.tuples(
    st.lists(st.one_of(_PHRASES, _INSTRUCTIONS), min_size=1, max_size=6).map(b"".join),
    st.sampled_from([1, 1, 1, 2, 60, 5_000, 60_000]),
)
_PROGRAMS = st.lists(_BLOCKS, min_size=1, max_size=8)
_TAILS = st.sampled_from([b".", b"", b"X\x0a\x00\x00\x00state_dict}s.", b"1."])
_MAGIC = pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + pickled({"little_endian": True})


def _examples(usual: int) -> Any:
    given = int(os.environ.get("LASAFT_FUZZ_EXAMPLES", "0"))
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=given or usual, deadline=None, suppress_health_check=checks)


def _import(file: Path) -> None:
    """Import a file within the limits."""
    began = time.process_time()
    tracemalloc.start()
    try:
        import_checkpoint(file, file.parent / "made")
        told = file.name
    except LasaftError as error:
        told = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert file.name in told
    assert len(told) < 50_000
    assert time.process_time() - began < _MOST_SECONDS
    assert peak < _MOST_TIMES_THE_FILE * file.stat().st_size + _ALWAYS_BYTES


@_examples(60)
@given(program=_PROGRAMS, tail=_TAILS, legacy=st.booleans())
def test_programs_of_any_instructions(
    tmp_path: Path, program: list[tuple[bytes, int]], tail: bytes, legacy: bool
) -> None:
    made = b"".join(part * min(times, _MOST_BYTES // len(part)) for part, times in program)
    data = b"\x80\x04" + made + tail
    file = tmp_path / "made.ckpt"
    if legacy:
        file.write_bytes(_MAGIC + data + pickled([]))
    else:
        save_raw_pickle(file, data)
    _import(file)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder, fixture = tmp_path_factory.mktemp("honest"), Fixture("net_gpocm_lasaft_decoder")
    kinds = {True: folder / "old.ckpt", False: folder / "new.ckpt"}
    for legacy, file in kinds.items():
        import_checkpoint(save_old_lightning(file, fixture, legacy=legacy), folder / "made")
    return kinds  # what torch imports when it is first used is no cost of a file


@_examples(60)
@given(
    legacy=st.booleans(),
    edits=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.integers(0, 40),
            st.binary(max_size=6),
            st.sampled_from([1, 1, 9, 4000]),
        ),
        min_size=1,
        max_size=5,
    ),
    near=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_files_with_pieces_changed_left_out_and_repeated(
    tmp_path: Path, honest: dict[bool, Path], legacy: bool, edits: Any, near: float
) -> None:
    data = honest[legacy].read_bytes()
    for where, left_out, put, times in edits:
        place = int((where if near == 1.0 else abs(near - 0.05 * where)) * len(data))
        new = (put or data[place : place + 20]) * times
        data = data[:place] + new + data[place + left_out :]
    file = tmp_path / "changed.ckpt"
    file.write_bytes(data)
    _import(file)
