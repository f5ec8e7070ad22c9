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
from collections import OrderedDict
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
