"""Reads the authors' PyTorch Lightning checkpoints safely: tensors and plain values, no code."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lasaft.authors.pickle_reader import StandIn, as_dict, read_pickle
from lasaft.errors import CheckpointError
from lasaft.files import file_sha256, no_file

_DTYPES = {
    "BFloat16Storage": torch.bfloat16, "BoolStorage": torch.bool, "ByteStorage": torch.uint8,
    "CharStorage": torch.int8, "DoubleStorage": torch.float64, "FloatStorage": torch.float32,
    "HalfStorage": torch.float16, "IntStorage": torch.int32, "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}  # fmt: skip
# What torch.save wrote first before it used zip files.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_PICKLE = b"\x80"  # how pickles of protocol 2 and later begin
_MOST_DIMENSIONS = 16
_MOST_NUMBERS = 2**48  # in a tensor: no file can hold as many
# What zipfile raises for a damaged member.
_DAMAGE = (KeyError, ValueError, zipfile.BadZipFile, EOFError, OSError, RuntimeError)
# Lightning's names for the hyper-parameters, newest first.
_HYPER_PARAMETERS = ("hyper_parameters", "hparams", "module_arguments")
# More than any honest file has: a few bytes of a pickle can stand for any amount of values.
_MOST_OPTIONS, _LONGEST_TEXT = 1000, 1000
_SHOWN, _LONGEST_SHOWN = 20, 100  # names in a message, and their letters
_ZIP_ENTRY = b"PK\x01\x02"


@dataclass(frozen=True)
class AuthorsCheckpoint:
    """What is of use in a Lightning checkpoint.

    Args:
        state_dict: the weights by the authors' names.
        hyper_parameters: the plain ones (numbers, texts, lists of those).
        other: the file's plain top-level values: epoch, global_step, version.
        left_out: names of hyper-parameters that were objects.
        sha256: of the file, in hex.
    """

    state_dict: dict[str, Tensor]
    hyper_parameters: dict[str, Any]
    other: dict[str, Any]
    left_out: list[str]
    sha256: str


@dataclass(frozen=True, eq=False)
class _Storage:
    """``count`` numbers of a file under a name, shared by the tensors that view them."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True, eq=False)
class _View:
    """A tensor that is not read yet: which part of which storage, in numbers (not bytes)."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_authors_checkpoint(path: str | Path) -> AuthorsCheckpoint:
    """Read a checkpoint of any age without running anything of it.

    Raises:
        CheckpointError: it is missing, damaged, no Lightning checkpoint, or asks for code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {no_file(path)}, give a checkpoint file (.ckpt)")
    sha256 = file_sha256(path)
    with path.open("rb") as stream:
        try:
            read = _read_zip if zipfile.is_zipfile(stream) else _read_legacy
        except zipfile.BadZipFile as error:
            raise CheckpointError(f"{path}: is damaged, its zip file: {error}") from error
        stream.seek(0)
        content, load = read(stream, str(path), path.stat().st_size)
        return _lightning(content, load, path, sha256)


# What reads the bytes of a storage of a file.
_Load = Callable[[_Storage], bytearray]


def _lightning(content: Any, load: _Load, path: Path, sha256: str) -> AuthorsCheckpoint:
    found = _items(content)
    weights = _items(found.get("state_dict"))
    if not weights:
        keys = _listed(key for key in found if isinstance(key, str)) or "nothing"
        raise CheckpointError(f"{path}: has no state_dict, it is no Lightning checkpoint ({keys})")
    # Files of their second networks have none.
    name = next((name for name in _HYPER_PARAMETERS if name in found), _HYPER_PARAMETERS[0])
    hyper = _items(found.get(name))
    if not all(_is_name(key) for key in (*weights, *hyper)) or len(hyper) > _MOST_OPTIONS:
        raise CheckpointError(f"{path}: refused: state_dict or {name} has keys that are no names")
    _check_tensors(weights, path)
    plain = {key: value for key, value in hyper.items() if _is_plain(value)}
    return AuthorsCheckpoint(
        state_dict=_tensors(weights, load, str(path)),
        hyper_parameters={
            key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()
        },
        other={
            key: value
            for key, value in found.items()
            if _is_name(key) and value is not None and _is_plain(value, within=())
        },
        left_out=sorted(key for key in hyper if key not in plain),
        sha256=sha256,
    )


def _check_tensors(weights: Mapping[str, Any], path: Path) -> None:
    wrong = [key for key, value in weights.items() if not isinstance(value, _View)]
    if wrong:
        raise CheckpointError(f"{path}: these of state_dict are no tensors: {_listed(wrong)}")
    # A tensor may repeat its storage (stride 0) or share it, but honest ones hardly do.
    size = sum(math.prod(view.shape) * view.storage.dtype.itemsize for view in weights.values())
    limit = path.stat().st_size + 2**20
    if size > limit:
        raise CheckpointError(
            f"{path}: refused: its tensors would take {size:.3g} bytes, allowed: {limit:.3g} in a "
            "file of this size"
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:_LONGEST_SHOWN] for name in names[:_SHOWN]) + more


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= _LONGEST_TEXT


def _is_plain(value: Any, within: tuple[type, ...] = (list, tuple)) -> bool:
    """Is it a number or a text, or a list of those, and of sensible size?"""
    if isinstance(value, within):
        return len(value) <= _MOST_OPTIONS and all(_is_plain(item, ()) for item in value)
    if isinstance(value, int):
        return abs(value) < 2**63
    if isinstance(value, str):
        return len(value) <= _LONGEST_TEXT
    return value is None or isinstance(value, float)


def _items(value: Any) -> dict[Any, Any]:
    """Return what a dict, or the stand-in of a class like one (Namespace, AttributeDict), holds."""
    if isinstance(value, StandIn):
        return value.items or (value.state if isinstance(value.state, dict) else {})
    return value if isinstance(value, dict) else {}


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _View:
    if not isinstance(storage, _Storage) or len(shape) != len(stride):
        raise ValueError("a tensor without a storage")
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError("a tensor of impossible shape")
    counts = (offset, *shape, *stride)
    if not all(type(count) is int and 0 <= count < _MOST_NUMBERS for count in counts):
        raise ValueError("a tensor of impossible shape")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= storage.count:
        raise ValueError("a tensor that reaches beyond its storage")
    return _View(storage, offset, tuple(shape), tuple(stride))


# What the calls that a pickle may ask for make of their arguments.
_BUILDERS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): as_dict(pairs),
    "torch.Size": lambda shape=(): tuple(shape),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
}


def _storage(identity: Any) -> _Storage:
    """Make a storage of a persistent id: ("storage", type, key, device, count, ...)."""
    kind, storage_type, key, _, count = identity[:5]
    dtype = _DTYPES.get(storage_type.name.rpartition(".")[2])
    if kind != "storage" or dtype is None or type(key) is not str or type(count) is not int:
        raise ValueError(f"a storage of unknown kind: {getattr(storage_type, 'name', 'none')}")
    if not 0 <= count < _MOST_NUMBERS:
        raise ValueError("a storage of impossible size")
    return _Storage(dtype, key, count)


def _tensors(views: Mapping[str, _View], load: _Load, name: str) -> dict[str, Tensor]:
    """Read each storage once, whatever views it, and keep one at a time."""
    sharing: dict[str, list[str]] = {}
    for key, view in views.items():
        sharing.setdefault(view.storage.key, []).append(key)
    tensors: dict[str, Tensor] = {}
    for keys in sharing.values():
        data = load(views[keys[0]].storage)
        tensors |= {key: _tensor(views[key], data, name) for key in keys}
    return {key: tensors[key] for key in views}


def _tensor(view: _View, data: bytearray, name: str) -> Tensor:
    storage = view.storage
    if len(data) < storage.count * storage.dtype.itemsize:
        raise CheckpointError(f"{name}: is damaged, tensor data {storage.key} is cut short")
    try:
        if 0 in view.shape:
            return torch.empty(view.shape, dtype=storage.dtype)
        flat = torch.frombuffer(data, dtype=storage.dtype, count=storage.count)
        return flat.as_strided(view.shape, view.stride, view.offset).clone()
    except (RuntimeError, TypeError) as error:  # sizes beyond what torch can count
        raise CheckpointError(f"{name}: is damaged, a tensor of {storage.key}: {error}") from error


def _most_instructions(size: int) -> int:
    """Return how many instructions the pickle of a file of ``size`` bytes may have.

    Each may leave 300 bytes of memory behind; a tensor has some 30, and a few hundred bytes.
    """
    return 300_000 + size // 100


def _most_bytes(size: int) -> int:
    """Return how long the pickle of a file of ``size`` bytes may be: the rest are tensors."""
    return 2**22 + size // 16


def _read_zip(stream: BufferedReader, name: str, size: int) -> tuple[Any, _Load]:
    """Read what torch.save has written since 1.6; a storage is read when it is asked for."""
    # Each costs zipfile a kilobyte of memory, some 20 times what it takes in the file.
    entries = sum(data.count(_ZIP_ENTRY) for data in iter(lambda: stream.read(2**20), b""))
    if entries > 10_000 + size // 1000:
        raise CheckpointError(f"{name}: refused: a zip file of {entries} members")
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{name}: is damaged, its zip file cannot be read: {error}"
        ) from error
    pickles = [entry for entry in archive.namelist() if entry.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{name}: is a zip file, but not one of torch.save")
    root = pickles[0].removesuffix("data.pkl")

    left = size  # members that overlap could be read again and again

    def member(entry: str) -> bytearray:
        nonlocal left
        try:
            # torch never compresses; something that does may unfold to any size.
            if archive.getinfo(entry).compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{name}: refused: {entry} is compressed, torch never does")
            left -= archive.getinfo(entry).file_size
            if left < 0:
                raise CheckpointError(f"{name}: refused: its zip file holds more than it is long")
            data = bytearray()
            with archive.open(entry) as file:
                while part := file.read(2**20):
                    data += part
            return data
        except _DAMAGE as error:
            raise CheckpointError(f"{name}: is damaged at {entry}: {error}") from error

    if root + "byteorder" in archive.namelist() and member(root + "byteorder") != b"little":
        raise CheckpointError(f"{name}: was written on a big-endian machine, which is not read")
    if archive.getinfo(pickles[0]).file_size > _most_bytes(size):
        raise CheckpointError(f"{name}: refused: its pickle is too long for a file of its size")
    data = BytesIO(member(pickles[0]))
    content = read_pickle(data, name, _BUILDERS, _storage, _most_instructions(size))
    return content, lambda storage: member(f"{root}data/{storage.key}")


def _read_legacy(stream: BufferedReader, name: str, size: int) -> tuple[Any, _Load]:
    """Read what torch.save wrote before 1.6: five pickles, then the storages one by one."""
    storages: dict[str, _Storage] = {}
    head = BytesIO(stream.read(_most_bytes(size)))
    if not head.getvalue().startswith(_PICKLE):
        raise CheckpointError(f"{name}: is no PyTorch checkpoint; give a .ckpt file of the authors")

    def persistent(identity: Any) -> Any:
        if identity[0] == "module":
            return identity[1]  # a class of a network's part, beside its source code as text
        found = _storage(identity)
        if len(identity) > 5 and identity[5] is not None:
            raise ValueError("a view of a storage, which torch has not written since 0.4")
        return storages.setdefault(found.key, found)

    def unpickle() -> Any:
        return read_pickle(head, name, _BUILDERS, persistent, _most_instructions(size))

    try:
        magic = unpickle()
    except CheckpointError as error:
        raise CheckpointError(f"{name}: is no PyTorch checkpoint, or damaged: {error}") from error
    if magic != _LEGACY_MAGIC or unpickle() != _LEGACY_PROTOCOL:
        raise CheckpointError(f"{name}: is no PyTorch checkpoint")
    system = unpickle()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{name}: was written on a big-endian machine, which is not read")
    content, keys = unpickle(), unpickle()
    if not isinstance(keys, list) or not all(type(key) is str and key in storages for key in keys):
        raise CheckpointError(f"{name}: is damaged, it lists storages that it does not have")
    places: dict[str, int] = {}
    stream.seek(head.tell())
    for key in keys:
        count = stream.read(8)
        if len(count) < 8 or struct.unpack("<q", count)[0] != storages[key].count:
            raise CheckpointError(f"{name}: is damaged, tensor data {key} is missing")
        places[key] = stream.tell()
        stream.seek(storages[key].count * storages[key].dtype.itemsize, SEEK_CUR)
    if stream.tell() > stream.seek(0, SEEK_END):
        raise CheckpointError(f"{name}: is damaged, tensor data {keys[-1]} is cut short")

    def load(storage: _Storage) -> bytearray:
        if storage.key not in places:
            raise CheckpointError(f"{name}: is damaged, tensor data {storage.key} is missing")
        stream.seek(places[storage.key])
        data = bytearray(storage.count * storage.dtype.itemsize)
        del data[stream.readinto(data) :]
        return data

    return content, load
