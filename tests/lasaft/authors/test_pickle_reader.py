"""Nothing that a checkpoint file asks for is ever run, and damage is one clear error."""

from __future__ import annotations

import builtins
import json
import math
import os
import pickle
import random
import shutil
import subprocess
import zipfile
import zlib
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lasaft.authors.file import read_authors_checkpoint
from lasaft.authors.importing import import_checkpoint
from lasaft.errors import CheckpointError
from tests.helpers.lightning import (
    Running,
    lightning_content,
    pickled,
    save_old_lightning,
    save_raw_pickle,
)
from tests.helpers.parity import Fixture

NETWORK = "net_gpocm_lasaft_decoder"


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture(NETWORK)


MALICE = {
    "a command": (os.system, "touch {}"),
    "a process": (subprocess.Popen, ["touch", "{}"]),
    "eval": (builtins.eval, "open('{}', 'w')"),
    "exec": (builtins.exec, "open('{}', 'w')"),
    "open": (builtins.open, "{}", "w"),
    "getattr": (builtins.getattr, "", "join"),
    "removing": (shutil.rmtree, "{}"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", list(MALICE))
def test_a_malicious_pickle_is_refused_and_does_not_run(
    tmp_path: Path, kind: str, protocol: int
) -> None:
    trace = tmp_path / "trace"
    function, *arguments = MALICE[kind]
    filled = [
        [part.format(trace) for part in a] if isinstance(a, list) else str(a).format(trace)
        for a in arguments
    ]
    content = {"state_dict": {}, "hyper_parameters": {"seed": Running(function, *filled)}}
    file = save_raw_pickle(tmp_path / "evil.ckpt", pickled(content, protocol))
    name = rf"{function.__name__}"
    with pytest.raises(CheckpointError, match=rf"evil\.ckpt: refused: it asks for .*\.{name}"):
        import_checkpoint(file, tmp_path / "c")
    assert not trace.exists()


def test_a_malicious_file_in_the_format_before_zip_is_refused(
    tmp_path: Path, fixture: Fixture
) -> None:
    trace = tmp_path / "trace"
    content = lightning_content(fixture, callbacks={"x": Running(os.system, f"touch {trace}")})
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"refused: it asks for \w+\.system"):
        read_authors_checkpoint(tmp_path / "a.ckpt")
    assert not trace.exists()


@pytest.mark.parametrize("function", [np.save, np.load, torch.load, torch.hub.load, torch.jit.load])
def test_calls_of_other_packages_functions_are_refused(
    tmp_path: Path, fixture: Fixture, function: Any
) -> None:
    call = Running(function, str(tmp_path / "trace.npy"), 1)
    content = lightning_content(fixture, extra=call)
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt: refused: it calls (numpy|torch)\."):
        read_authors_checkpoint(tmp_path / "a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


# A class, though its name does not look like one.
munch = type("munch", (), {"__module__": __name__})


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_objects_of_a_class_with_a_small_letter_are_left_out(
    tmp_path: Path, fixture: Fixture, protocol: int
) -> None:
    content = lightning_content(fixture)
    content["hyper_parameters"]["config"] = munch()
    torch.save(content, tmp_path / "a.ckpt", pickle_protocol=protocol)
    assert read_authors_checkpoint(tmp_path / "a.ckpt").left_out == ["config"]


def test_values_of_numpy_and_devices_are_read_as_objects(tmp_path: Path, fixture: Fixture) -> None:
    content = lightning_content(fixture)
    content["hyper_parameters"] |= {
        "number": np.float64(1), "array": np.ones(3), "device": torch.device("cpu"),
        "type": torch.float32, "loss": torch.nn.MSELoss(),
    }  # fmt: skip
    torch.save(content, tmp_path / "a.ckpt")
    found = read_authors_checkpoint(tmp_path / "a.ckpt")
    assert {"number", "array", "device", "type", "loss"} <= set(found.left_out)


def test_state_given_to_a_torch_function_changes_nothing(tmp_path: Path) -> None:
    # BUILD on a global would set attributes of the real function in a common unpickler.
    data = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb"
        b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb."
    )
    with pytest.raises(CheckpointError, match="no state_dict"):
        read_authors_checkpoint(save_raw_pickle(tmp_path / "a.ckpt", data))
    assert pickle.loads(pickle.dumps(torch.ones(2))).tolist() == [1, 1]
    assert not hasattr(OrderedDict, "a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"(S'x'\nios\nsystem\n.", "instruction INST"),
        (b"(cmymodule\nThing\no.", "instruction OBJ"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"Pname\n.", "instruction PERSID"),
        (b"\x80\x02]K\x01R.", "is damaged"),
        (b".", "is damaged"),
        (b"(.", "no state_dict"),
        (b"", "is damaged"),
        (b"\x80\x02}q\x00X\xff\xff\xff\x7fabc", "is damaged"),
        (b"K\x01}s.", "is damaged"),
    ],
)
def test_odd_pickles_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_authors_checkpoint(save_raw_pickle(tmp_path / "a.ckpt", data))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_a_file_cut_short_anywhere_is_one_clear_error(
    tmp_path: Path, fixture: Fixture, legacy: bool
) -> None:
    whole = save_old_lightning(tmp_path / "a.ckpt", fixture, legacy=legacy).read_bytes()
    places = [0, 1, 10, *range(100, len(whole), len(whole) // 40), len(whole) - 1]
    for place in places:
        (tmp_path / "cut.ckpt").write_bytes(whole[:place])
        with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
            read_authors_checkpoint(tmp_path / "cut.ckpt")


def test_changed_bytes_of_the_pickle_never_get_past_the_reader(
    tmp_path: Path, fixture: Fixture
) -> None:
    file = save_old_lightning(tmp_path / "a.ckpt", fixture)
    with zipfile.ZipFile(file) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        good = archive.read(entry)
    generator = random.Random(0)
    refused = 0
    for _ in range(200):
        bad = bytearray(good)
        for _ in range(generator.randint(1, 4)):
            bad[generator.randrange(len(bad))] = generator.randrange(256)
        try:
            read_authors_checkpoint(save_raw_pickle(tmp_path / "bad.ckpt", bytes(bad)))
        except CheckpointError:
            refused += 1  # any other exception fails the test
    assert refused > 100


def test_tensors_beyond_their_storage_and_packed_data_are_refused(
    tmp_path: Path, fixture: Fixture
) -> None:
    torch.save(lightning_content(fixture), tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:-4] if "/data/" in name and len(data) > 4 else data)
    with pytest.raises(CheckpointError, match=r"b\.ckpt: is damaged, tensor data \d+ is cut"):
        read_authors_checkpoint(tmp_path / "b.ckpt")
    with zipfile.ZipFile(tmp_path / "d.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(CheckpointError, match="is compressed, torch never does"):
        read_authors_checkpoint(tmp_path / "d.ckpt")


def bomb(depth: int) -> bytes:
    """A few bytes that stand for 2**depth values: each tuple holds the one before it twice."""
    return b")q\x000" + depth * b"(h\x00h\x00tq\x000" + b"h\x00"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02}" + bomb(60) + b"K\x01s.", "a tuple of tuples as a key"),
        (b"\x80\x04\x8f(" + bomb(60) + b"\x90.", "a tuple of tuples as a key"),
        (b"\x80\x04(" + bomb(60) + b"\x91.", "a tuple of tuples as a key"),
        (b"\x80\x02" + bomb(60) + b"Q.", "is damaged"),
        (b"\x80\x02ccollections\nOrderedDict\n]" + bomb(60) + b"K\x01\x86a\x85R.", "as a key"),
        (b"\x80\x02" + bomb(60) + b".", "no state_dict"),
    ],
    ids=["dict", "set", "frozenset", "storage", "OrderedDict", "alone"],
)
def test_few_bytes_that_stand_for_many_values_end_at_once(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_authors_checkpoint(save_raw_pickle(tmp_path / "a.ckpt", data))


def tensor(
    key: bytes, count: int, shape: bytes = b"K\x01\x85", stride: bytes = b"K\x01\x85"
) -> bytes:
    """The instructions for a view of a storage of ``count`` float32 numbers."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + pickled(key.decode())[2:-1]
    identity = storage + b"X\x03\x00\x00\x00cpu" + pickled(count)[2:-1] + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"K\x00" + shape + stride + b"\x89}tR"
    )


def checkpoint_of(tensors: dict[str, bytes]) -> bytes:
    """The pickle of a Lightning checkpoint, with the instructions for each tensor."""
    items = b"".join(pickled(name)[2:-1] + made + b"s" for name, made in tensors.items())
    heads = (pickled(name)[2:-1] for name in ("state_dict", "hyper_parameters"))
    return b"\x80\x02}" + next(heads) + b"}" + items + b"s" + next(heads) + b"}s."


LONG = b"(" + b"K\x01" * 30_000 + b"tq\x000"  # a tuple that the memo keeps


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(60) + b"X\x01\x00\x00\x00a\x93.", "a name that is no text"),
        (b"X\x01\x00\x00\x00a" + bomb(60) + b"\x93.", "a name that is no text"),
        (b"cmymodule\nThing\n)R" + b"K\x01a" * 300_000 + b".", "instructions|no state_dict"),
        (b"cmymodule\nThing\n)R" + b"K\x01a" * 100_000 + b".", "no state_dict"),
        (LONG + b"ctorch\nSize\nh\x00\x85R" * 30_000 + b".", "long arguments again and again"),
        (
            b"](" + b"K\x01K\x02\x86" * 10_000 + b"eq\x000"
            + b"ccollections\nOrderedDict\nh\x00\x85R" * 10_000 + b".",
            "long arguments again and again",
        ),
        (LONG + b"ctorch._utils\n_rebuild_parameter\nh\x00R" * 30_000 + b".", "with more than 64"),
        (LONG + b"cmymodule\nThing\nh\x00}\x92" * 30_000 + b".", "no state_dict"),
        (LONG + tensor(b"0", 9, b"h\x00", b"h\x00") * 30_000 + b".", "of impossible shape"),
        (LONG + b"}" + b"h\x00K\x01s" * 30_000 + b".", "as a key"),
        (
            pickled("x" * 100_000)[2:-1] + b"q\x000" + b"h\x00h\x00\x93" * 30_000 + b".",
            "a name of more than 500 characters",
        ),
        (
            b"\x8b\xa0\x86\x01\x00" + b"\x01" * 100_000 + b"q\x000}"
            + b"h\x00K\x01s" * 90_000 + b".",
            "no state_dict",
        ),
        (b"\x8f" * 2_000_000 + b".", r"more than \d+ instructions"),
    ],
    ids=[
        "module", "name", "many appends", "appends", "Size", "OrderedDict", "arguments",
        "NEWOBJ_EX", "shape", "key", "long names", "long numbers", "empty sets",
    ],
)  # fmt: skip
def test_work_that_its_instructions_are_not_worth_is_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_authors_checkpoint(save_raw_pickle(tmp_path / "a.ckpt", b"\x80\x04" + data))


def test_a_storage_is_read_once_however_many_tensors_view_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.arange(1000, dtype=np.float32)
    views = {f"v{number}": tensor(b"0", 1000) for number in range(500)}
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", checkpoint_of(views))
        archive.writestr("a/data/0", numbers.tobytes())
    real, opened = zipfile.ZipFile.open, list[str]()

    def count(self: zipfile.ZipFile, name: Any, *more: Any, **options: Any) -> Any:
        opened.append(str(name))
        return real(self, name, *more, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", count)
    found = read_authors_checkpoint(tmp_path / "a.ckpt").state_dict
    assert list(found) == list(views)
    assert all(value.tolist() == [0] for value in found.values())
    assert opened == ["a/data.pkl", "a/data/0"]


@pytest.mark.timeout(20)
def test_members_of_a_zip_file_that_overlap_are_refused(tmp_path: Path) -> None:
    count, content = 200, BytesIO()
    tensors = {f"t{number}": tensor(str(number).encode(), 1) for number in range(count)}
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a/data.pkl", checkpoint_of(tensors))
        for number in range(count):
            archive.writestr(f"a/data/{number}", b"\0" * 4)
        archive.writestr("a/rest", b"\0" * 100_000)
        whole = content.getvalue()
        for entry in archive.filelist[1:]:  # each reaches to the end
            start = entry.header_offset + 30 + len(entry.filename)
            entry.file_size = entry.compress_size = len(whole) - start
            entry.CRC = zlib.crc32(whole[start:])
    (tmp_path / "a.ckpt").write_bytes(content.getvalue())
    with pytest.raises(CheckpointError, match="its zip file holds more than it is long"):
        read_authors_checkpoint(tmp_path / "a.ckpt")


def test_a_zip_file_of_very_many_members_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        for number in range(20_000):
            archive.writestr(str(number), b"")
    with pytest.raises(CheckpointError, match="refused: a zip file of 20000 members"):
        read_authors_checkpoint(tmp_path / "a.ckpt")


def test_a_pickle_that_is_most_of_a_file_is_refused(tmp_path: Path) -> None:
    file = save_raw_pickle(tmp_path / "a.ckpt", pickled("x" * 6_000_000))
    with pytest.raises(CheckpointError, match="its pickle is too long for a file of its size"):
        read_authors_checkpoint(file)


@pytest.mark.timeout(20)
def test_hyper_parameters_of_senseless_size_are_left_out(tmp_path: Path, fixture: Fixture) -> None:
    many: list[Any] = [1]
    for _ in range(60):
        many = [many, many]
    content = lightning_content(fixture, epoch=10**5000, callbacks=many)
    content["hyper_parameters"] |= {"many": many, "long": "x" * 10**6, "huge": 10**5000}
    torch.save(content, tmp_path / "a.ckpt")
    made = import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c")
    assert made.left_out == ["huge", "long", "many"]
    assert (tmp_path / "c" / "config.json").stat().st_size < 10_000


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("control_input_dim", value) for value in ("4", 4.5, [4], float("nan"), 10**12, True)),
        *((name, 10**12) for name in ("internal_channels", "dk", "num_tdfs", "embedding_dim")),
        ("n_internal_layers", 10**6),
        ("internal_channels", 60000),
    ],
)
def test_networks_of_senseless_size_are_refused(
    tmp_path: Path, fixture: Fixture, name: str, value: Any
) -> None:
    content = lightning_content(fixture)
    content["hyper_parameters"][name] = value
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt: "):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_the_record_of_an_import_is_json_whatever_the_file_says(
    tmp_path: Path, fixture: Fixture
) -> None:
    content = lightning_content(fixture)
    content["hyper_parameters"] |= {"half": "\ud800", "min_delta": float("-inf"), "lrs": [math.nan]}
    torch.save(content, tmp_path / "a.ckpt")
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "c")

    def refuse(word: str) -> None:
        raise ValueError(word)

    record = json.loads((tmp_path / "c" / "config.json").read_bytes(), parse_constant=refuse)
    found = record["provenance"]["hyper_parameters"]
    assert (found["half"], found["min_delta"], found["lrs"]) == ("\\ud800", "-inf", ["nan"])


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20), (0, 2**62, 2**62), (2**1000,) * 16])
def test_tensors_much_larger_than_their_file_are_refused(
    tmp_path: Path, fixture: Fixture, shape: tuple[int, ...]
) -> None:
    torch.save(lightning_content(fixture), tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        storage = next(name for name in archive.namelist() if name.endswith("/data/0"))
        head = storage.removesuffix("data/0")
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    identity = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
    )
    sizes = b"(" + b"".join(pickled(size)[2:-1] for size in shape) + b"t"
    strides = b"(" + b"K\x00" * len(shape) + b"t"
    tensor = rebuild + b"(" + identity + b"K\x00" + sizes + strides + b"\x89}tR"
    data = (
        b"\x80\x02}(X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00a" + tensor + b"s"
        b"X\x10\x00\x00\x00hyper_parameters}u."
    )
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as archive:
        archive.writestr(f"{head}data.pkl", data)
        archive.writestr(f"{head}data/0", b"\x00" * 4)
    with pytest.raises(CheckpointError, match=r"b\.ckpt: (refused: its tensors would take|is dam)"):
        read_authors_checkpoint(tmp_path / "b.ckpt")


def test_names_that_are_no_texts_are_refused(tmp_path: Path, fixture: Fixture) -> None:
    content = lightning_content(fixture)
    content["state_dict"] = {**content["state_dict"], 3: torch.ones(1)}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="has keys that are no names"):
        read_authors_checkpoint(tmp_path / "a.ckpt")


def test_calls_hidden_in_objects_and_their_states_are_refused(tmp_path: Path) -> None:
    call = b"cposix\nsystem\n(X\x04\x00\x00\x00exittR"
    wraps = {
        "state": b"\x80\x02cfoo\nBar\n)R}X\x01\x00\x00\x00a" + call + b"sb.",
        "item": b"\x80\x02](K\x01" + call + b"e.",
        "new": b"\x80\x02cposix\nsystem\n)\x81.",
        "new with keywords": b"\x80\x04cposix\nsystem\n)}\x92.",
        "stack": b"\x80\x04X\x05\x00\x00\x00posixX\x06\x00\x00\x00system\x93.",
        "python 2": b"\x80\x02ccommands\ngetoutput\n(X\x04\x00\x00\x00exittR.",
        "attribute": b"\x80\x04X\x08\x00\x00\x00builtinsX\x0b\x00\x00\x00eval.__call\x93.",
        "module": b"\x80\x02cimportlib\nimport_module\n(X\x02\x00\x00\x00ostR.",
        "partial": b"\x80\x02cfunctools\npartial\n(cposix\nsystem\nX\x04\x00\x00\x00exittR.",
    }
    for kind, data in wraps.items():
        file = save_raw_pickle(tmp_path / f"{kind}.ckpt", data)
        with pytest.raises(CheckpointError, match="refused: it asks for"):
            read_authors_checkpoint(file)


@pytest.mark.parametrize("count", [2**61, 2**63 - 1, -1, -(2**40)])
def test_storages_of_impossible_size_in_the_format_before_zip_are_refused(
    tmp_path: Path, fixture: Fixture, count: int
) -> None:
    torch.save(
        lightning_content(fixture), tmp_path / "a.ckpt", _use_new_zipfile_serialization=False
    )
    data = (tmp_path / "a.ckpt").read_bytes()
    # The first storage's number of values, in its identity and again before its bytes.
    before = data.index(b"cpu", data.index(b"FloatStorage"))
    start = data.index(b"M" if data[before:].find(b"M") < 20 else b"K", before)
    size = 3 if data[start : start + 1] == b"M" else 2
    bad = data[:start] + pickled(count)[2:-1] + data[start + size :]
    (tmp_path / "b.ckpt").write_bytes(bad)
    with pytest.raises(CheckpointError, match=r"b\.ckpt: is damaged.*a storage of impossible size"):
        read_authors_checkpoint(tmp_path / "b.ckpt")
