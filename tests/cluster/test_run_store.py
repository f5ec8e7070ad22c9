"""A run in an object store: copies, who may write to it, and what goes with tasks."""

from __future__ import annotations

import collections
import json
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication as Application
from pyarrow import fs

from jobs.cli import parse
from lasaft.errors import ConfigError, DataError, StageError
from lasaft.files import atomic_write_bytes, atomic_write_json
from pipeline.cluster import claims, one_writer, store
from pipeline.cluster.claims import Claim, is_dead, whoami
from pipeline.cluster.one_writer import Lease, alone_in_run
from pipeline.cluster.parcels import parcel
from pipeline.cluster.patient_files import patient_place
from pipeline.cluster.run_store import LARGE, RunStore
from pipeline.cluster.store import RemoteFolder, note_written, written_lately
from pipeline.config import DataConfig, RunConfig
from pipeline.config.fingerprints import content_hash, digest
from pipeline.config.folders import RunFolder, below
from pipeline.data.shards.preprocess import preprocess
from pipeline.training.loop.right_to_write import right_to_write, trains_here
from pipeline.workflow import doctor
from pipeline.workflow.run import publish, shards_hash, shards_input
from pipeline.workflow.steps import Step, StepRunner
from tests.helpers.object_store import (
    address,
    late_listings,
    object_names,
    object_store,
    put_folder,
    put_object,
)


class Machines:
    """Machines that share nothing but the store: each has copies of its own."""

    def __init__(self, place: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._place, self._root, self._monkeypatch = place, root, monkeypatch

    def on(self, name: str) -> RunStore:
        """Go to a machine."""
        self._monkeypatch.setenv("XDG_CACHE_HOME", str(self._root / name))
        return RunStore(RunFolder.of(self.config))

    @property
    def config(self) -> RunConfig:
        """The settings of the run."""
        return RunConfig(output_dir=self._place)


@pytest.fixture
def machines(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Two machines or more."""
    return Machines(place, tmp_path, monkeypatch)


def _write(store: RunStore, name: str, text: str) -> None:
    path = store.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _files(store: RunStore) -> dict[str, str]:
    paths = [p for p in store.root.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {path.relative_to(store.root).as_posix(): path.read_text() for path in paths}


def test_what_one_machine_makes_another_finds(machines: Machines) -> None:
    a = machines.on("a")
    _write(a, "training/metrics.jsonl", "{}\n")
    _write(a, "report/index.html", "page")
    _write(a, "report/.hidden", "stays")
    a.push()
    b = machines.on("b")
    b.pull()
    assert _files(b) == {"training/metrics.jsonl": "{}\n", "report/index.html": "page"}
    (b.root / "report" / "index.html").unlink()
    _write(b, "training/metrics.jsonl", "ab\n")  # of the same length, in the same second
    b.push("training", "report")
    a.pull("training")
    assert _files(a) == {"training/metrics.jsonl": "ab\n", "report/index.html": "page"}
    a.pull()
    assert _files(a) == {"training/metrics.jsonl": "ab\n"}
    assert not (a.root / "report" / "index.html").exists()
    assert (a.root / "report" / ".hidden").exists()


def test_what_is_left_out_is_left_alone(machines: Machines) -> None:
    a = machines.on("a")
    _write(a, "songs/a.wav", "sound")
    _write(a, "training/ray/x/state", "state")
    _write(a, "training/result.json", "{}")
    a.push()
    b = machines.on("b")
    b.pull(but=[*LARGE, "training/ray"])
    assert _files(b) == {"training/result.json": "{}"}
    (b.root / "training" / "result.json").unlink()
    b.push(but=[*LARGE, "training/ray"])
    a.pull()
    assert _files(a) == {"songs/a.wav": "sound", "training/ray/x/state": "state"}
    a.remove("training/ray")
    b.pull()
    assert _files(b) == {"songs/a.wav": "sound"}


def test_what_a_training_of_this_machine_writes_is_not_overwritten_meanwhile(
    machines: Machines, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = machines.on("a")
    assert not trains_here(run)
    with right_to_write(RunFolder.of(machines.config), run):
        assert trains_here(run)
        monkeypatch.setattr(os, "uname", lambda: type("Other", (), {"nodename": "other"}))
        assert not trains_here(run)


def test_nothing_is_fetched_or_put_twice(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = machines.on("a")
    _write(a, "scores/x.json", "1")
    a.push()
    b = machines.on("b")
    b.pull()

    def never(*_: object) -> None:
        raise AssertionError

    for name in ("get", "put", "delete"):
        monkeypatch.setattr(store.RemoteFile, name, never)
    for each in (a, b):
        each.pull()
        each.push()


def test_what_others_write_is_fetched_and_nothing_removed(machines: Machines) -> None:
    there = machines.on("other")
    for name in ("journal", "state"):
        atomic_write_bytes(there.root / "training" / name, b"1")
    there.push()
    here = machines.on("here")
    here.fetch("training", but=["training/state"])
    assert not (here.root / "training" / "state").exists()
    (here.root / "training" / "own").write_bytes(b"mine")
    (there.root / "training" / "journal").write_bytes(b"other")
    there.push()
    here.fetch("training")
    found = {path.name: path.read_bytes() for path in (here.root / "training").iterdir()}
    assert found == {"journal": b"other", "own": b"mine", "state": b"1"}
    here.remove("training/state")
    assert object_names(str(machines.config.output_dir)) == {"training/journal"}


def test_a_trial_of_a_search_lies_in_the_copy_of_its_run(machines: Machines) -> None:
    root = machines.on("here").root
    trial = machines.config.model_copy(
        update={"output_dir": below(str(machines.config.output_dir), "search/trials/0007-seed1")}
    )
    assert RunFolder.of(trial).root == root / "search" / "trials" / "0007-seed1"


def test_a_folder_and_its_plain_copy_in_a_bucket_have_the_same_hashes(
    place: str, tmp_path: Path
) -> None:
    config = RunConfig(output_dir=tmp_path / "run")
    folder = RunFolder.of(config)
    for name in ("manifest.json", "train/a.000.arrow", "train/a.000.json", ".lock"):
        atomic_write_bytes(folder.shards / name, name.encode())
    put_folder(folder.root, place)
    put_object(place, "shards/train/a.000.arrow.sha256", b"a mark")
    copied = RunFolder.of(RunConfig(output_dir=place))
    assert shards_hash(copied) == shards_hash(folder) is not None
    assert RemoteFolder(place).names_hash("shards/train") is not None
    assert RemoteFolder(place).names_hash("nothing") is None
    (folder.shards / "train" / "a.000.arrow.sha256").write_bytes(b"a mark")
    assert shards_hash(copied) == shards_hash(folder)
    (folder.shards / "train" / "b.000.arrow").write_bytes(b"b")
    assert shards_hash(copied) != shards_hash(folder)


def test_a_stamp_of_before_goes_on_with_the_hash_that_it_has(place: str, tmp_path: Path) -> None:
    put_object(place, "manifest.json", b"{}")
    put_object(place, "train/a.000.arrow", b"a")
    config = RunConfig(output_dir=tmp_path / "run", data=DataConfig(shards_dir=place))
    folder, former = RunFolder.of(config), digest("{}")
    now = shards_hash(folder)
    assert shards_input(folder, "train") == now != former
    for known, wanted in ((former, former), (now, now), (digest("other"), now), (None, now)):
        stamp = {"key": former, "state": "started", "inputs": {"shards": known}}
        atomic_write_json(folder.steps / "train.json", stamp)
        assert shards_input(folder, "train") == wanted


def test_stamps_come_last(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    a, order = machines.on("a"), list[str]()
    real = store.RemoteFile.put
    monkeypatch.setattr(
        store.RemoteFile, "put", lambda file, path: (order.append(path.name), real(file, path))[1]
    )
    for name in ("steps/train.json", "training/result.json", "zz/late.bin", "aa/early.bin"):
        _write(a, name, name)
    a.push()
    assert set(order[2:]) == {"train.json", "result.json"}


def test_what_a_step_moves_aside_comes_back_on_another_machine(
    machines: Machines, place: str
) -> None:
    worked = 0

    def run(machine: str, value: int) -> bool:
        """Return whether there was work to do."""
        store, before = machines.on(machine), worked
        out = store.root / "training" / "out.txt"

        def work() -> str:
            nonlocal worked
            worked += 1
            atomic_write_bytes(out, str(value).encode())
            return ""

        store.pull(but=LARGE)
        store.fetch_stamps()
        step = Step(
            "train", lambda: {"value": value}, 1, (out.parent,), lambda: content_hash(out), work
        )
        config, to_store = machines.config, partial(publish, store)
        StepRunner(store.root, config, print, (), to_store, store.recall).run([step])
        assert out.read_text() == (RemoteFolder(place) / "training/out.txt").read_bytes().decode()
        assert out.read_text() == str(value)
        return worked > before

    assert run("a", 1)
    assert run("b", 2)
    assert len(_below(place, "previous")) == 2
    assert not run("c", 1)
    assert not run("a", 2)
    assert len(_below(place, "previous")) == 2
    assert not run("d", 2)


def _below(place: str, folder: str) -> set[str]:
    return {name for name in object_names(place) if name.startswith(f"{folder}/")}


def test_songs_and_shards_that_are_moved_aside_stay_on_their_machine(
    machines: Machines, place: str
) -> None:
    a = machines.on("a")
    for name in ("songs-1/stamp.json", "songs-1/songs/a.wav", "train-unknown/training/x"):
        _write(a, f"previous/{name}", name)
    assert a.push_moved() == []
    assert object_names(place) == {"previous/train-unknown/training/x"}
    b = machines.on("b")
    b.fetch_stamps()
    assert _files(b) == {}
    assert b.push_moved() == []  # what has no stamp comes back to nobody


def test_a_folder_is_its_own_store(tmp_path: Path) -> None:
    here = RunStore(RunFolder.of(RunConfig(output_dir=tmp_path)))
    (tmp_path / "a").write_text("a")
    here.pull()
    here.push()
    assert here.remote is None
    assert (tmp_path / "a").read_text() == "a"
    assert parcel(RunFolder.of(RunConfig(output_dir=tmp_path)), reads=[tmp_path / "x"]) is None


def test_a_parcel_brings_what_a_task_reads_and_takes_back_what_it_writes(
    machines: Machines, tmp_path: Path
) -> None:
    head = machines.on("head")
    folder = RunFolder.of(machines.config)
    _write(head, "checkpoint/weights", "w")
    head.push()
    _write(head, "scores/old.json", "old")
    files = [folder.scores / "old.json", folder.scores / "new.json"]
    made = parcel(
        folder, reads=[folder.checkpoint, tmp_path], writes=[folder.estimates], files=files
    )
    assert made is not None
    sent = pickle.dumps(made)
    for path in (folder.checkpoint / "weights", folder.scores / "old.json"):
        path.unlink()  # the node has none of it

    def task() -> str:
        (folder.estimates).mkdir()
        (folder.estimates / "vocals.wav").write_text("sound")
        (folder.scores / "new.json").write_text("new")
        old = (folder.scores / "old.json").read_text()
        return (folder.checkpoint / "weights").read_text() + old

    result, changed = pickle.loads(sent).do(task)
    assert (result, changed) == ("wold", {"scores/new.json": b"new"})
    made.keep(changed)
    there = object_names(str(machines.config.output_dir))
    assert there == {"checkpoint/weights", "estimates/vocals.wav", "scores/new.json"}


# Who may write


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are stale after seconds."""
    monkeypatch.setattr(one_writer, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(one_writer, "_STALE_SECONDS", 3.0)
    monkeypatch.setattr(claims, "_SETTLE_SECONDS", 0.2)


def test_another_command_is_refused_and_named(
    place: str, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = Lease(RemoteFolder(place)), Lease(RemoteFolder(place))
    assert first.take("train on a") is None
    assert second.take("run on b") == "train on a"
    assert "was in use by train on a; looking for 3 s" in capsys.readouterr().err
    first.require()
    first.drop()
    assert second.take("run on b") is None
    second.drop()
    assert object_names(place) == set()


def test_a_dead_command_is_followed(place: str, quick: None) -> None:
    dead = {"host": "elsewhere", "process": 1, "id": "x", "owner": "run on c", "beat": 7}
    put_object(place, ".lease.json", json.dumps(dead).encode())
    lease = Lease(RemoteFolder(place))
    assert lease.take("run on d") is None
    lease.drop()
    ended = dead | {"host": os.uname().nodename, "process": 2**22 + 1}
    put_object(place, ".lease.json", json.dumps(ended).encode())
    assert is_dead(ended)
    lease = Lease(RemoteFolder(place))
    assert lease.take("run on d") is None
    lease.drop()


@pytest.mark.parametrize("conditions", ["kept", "unknown", "refused"])
def test_of_many_in_the_same_instant_one_gets_it(
    place: str,
    conditions: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the store where it writes on conditions, else by looking again."""
    answer = Application.__call__

    def conditionless(app: Application, environ: dict[str, Any], start: Any) -> Any:
        if conditions == "refused" and "object_store" in environ.get("HTTP_USER_AGENT", ""):
            start("501 Not Implemented", [])
            return [b""]
        for header in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"):
            environ.pop(header, None)
        return answer(app, environ, start)

    if conditions != "kept":
        monkeypatch.setattr(Application, "__call__", conditionless)
    taking = [Claim(RemoteFolder(place), "claim") for _ in range(6)]
    assert [claim.owner() for claim in taking] == [None] * 6
    own = [whoami() for _ in taking]
    with ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(Claim.take, taking, own))
    assert sum(taken) == 1
    winner = taken.index(True)
    assert taking[winner].owner() == own[winner]
    assert taking[winner].keep(own[winner] | {"beat": 1})
    assert not any(c.keep(o) for c, o, won in zip(taking, own, taken, strict=True) if not won)
    assert taking[winner].owner() == own[winner] | {"beat": 1}
    assert ("no conditional writes (" in capsys.readouterr().err) == (conditions == "refused")
    taking[winner].drop(own[winner])
    assert object_names(place) == set()


def test_an_answer_that_is_lost_on_the_way_loses_no_claim(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, lost = Application.__call__, 0

    def lose(app: Application, environ: dict[str, Any], start: Any) -> Any:
        nonlocal lost
        done = answer(app, environ, start)
        if environ["REQUEST_METHOD"] != "PUT" or lost % 2:
            lost += environ["REQUEST_METHOD"] == "PUT"
            return done
        lost += 1
        start("503 Slow Down", [])
        return [b""]

    monkeypatch.setattr(Application, "__call__", lose)
    monkeypatch.setattr(store, "PAUSES_SECONDS", [0.01] * 4)
    claim, own = Claim(RemoteFolder(place), "claim"), whoami()
    assert claim.owner() is None
    assert claim.take(own)
    assert claim.keep(own | {"beat": 1})
    assert lost >= 4
    claim.drop(own)


def test_one_that_stood_still_is_told_and_writes_no_more(
    machines: Machines, place: str, quick: None
) -> None:
    machines.on("a")
    lost = threading.Event()
    with pytest.raises(StageError, match="has taken the run over"):  # noqa: SIM117
        with alone_in_run(machines.config):
            other = {"host": "elsewhere", "process": 1, "id": "y", "owner": "run on b", "beat": 0}
            put_object(place, ".lease.json", json.dumps(other).encode())
            lost.wait(1.5)
            _write(machines.on("a"), "report/index.html", "late")
    assert object_names(place) == {".lease.json"}


def test_the_right_to_train_goes_to_the_next_process(machines: Machines) -> None:
    remote = machines.on("a")
    first = right_to_write(RunFolder.of(machines.config), remote)
    second = right_to_write(RunFolder.of(machines.config), remote)
    with first:
        first.require()
        put_object(
            str(machines.config.output_dir),
            "training/.writer.json",
            json.dumps({"host": os.uname().nodename, "process": 2**22 + 1}).encode(),
        )
        with second:
            second.require()
            with pytest.raises(StageError, match="another one has taken the training over"):
                first.require()
    assert object_names(str(machines.config.output_dir)) == set()


# What Ray Train writes there itself


def test_a_file_system_that_waits_does_what_the_store_s_own_does(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is refused twice; a copy that travelled does the same."""
    answer, asked = Application.__call__, collections.Counter[tuple[str, str]]()

    def busy(app: Application, environ: dict[str, Any], start: Any) -> Any:
        request = environ["REQUEST_METHOD"], environ["PATH_INFO"] + environ["QUERY_STRING"]
        asked[request] += 1
        if asked[request] > 2:
            return answer(app, environ, start)
        start("400 Bad Request", [("Content-Type", "application/xml")])
        return [b"<Error><Code>ExpiredToken</Code><Message>It has expired.</Message></Error>"]

    monkeypatch.setattr(store, "PAUSES_SECONDS", [0.01] * 9)
    system, path = patient_place(RemoteFolder(place), "")
    waiting = pickle.loads(pickle.dumps(system))
    assert waiting == system
    assert waiting == patient_place(RemoteFolder(place), "")[0]
    monkeypatch.setattr(Application, "__call__", busy)
    waiting.create_dir(f"{path}/runs")
    with waiting.open_output_stream(f"{path}/runs/index.json") as file:
        file.write(b"one ")
        file.write(b"two")
    waiting.copy_file(f"{path}/runs/index.json", f"{path}/runs/copy")
    waiting.move(f"{path}/runs/copy", f"{path}/runs/moved")
    with waiting.open_input_stream(f"{path}/runs/moved") as file:
        assert file.read() == b"one two"
    assert waiting.get_file_info(f"{path}/runs/none").type == fs.FileType.NotFound
    with pytest.raises(FileNotFoundError):
        waiting.open_input_file(f"{path}/runs/none")
    found = waiting.get_file_info(fs.FileSelector(f"{path}/runs"))
    assert sorted(info.base_name for info in found) == ["index.json", "moved"]
    waiting.delete_file(f"{path}/runs/moved")
    waiting.delete_dir(f"{path}/runs")
    assert asked.total() > 20
    monkeypatch.setattr(Application, "__call__", answer)
    assert object_names(place) == set()


# A store that lists late what it has taken


def test_what_is_not_listed_yet_is_found_by_its_name(
    machines: Machines, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late_listings(lambda age: True):
        a = machines.on("a")
        _write(a, "songs/x/a.wav", "sound")
        a.push("songs")
        assert object_names(place) == set()
        told = [name for name in written_lately() if name.startswith(str(a.remote))]
        assert told == [f"{a.remote}/songs/x/a.wav"]
        monkeypatch.setattr(store, "_written", {})  # in another process
        a.pull("songs")
        assert _files(a) == {"songs/x/a.wav": "sound"}
        b = machines.on("b")
        b.pull("songs")
        assert _files(b) == {}
        note_written(told)
        b.pull("songs/y")
        assert _files(b) == {}
        b.pull("songs")
        assert _files(b) == {"songs/x/a.wav": "sound"}
        b.remove("songs")
        a.pull("songs")
        assert _files(a) == {}
        monkeypatch.setattr(store, "_LATE_SECONDS", 0.0)
        assert written_lately() == []


def test_tasks_and_their_command_tell_each_other_what_they_have_written(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with late_listings(lambda age: True):
        run, songs = machines.on("head"), machines.on("head").root / "songs"
        _write(run, "songs/in/a.wav", "sound")
        run.push("songs")
        sent = parcel(RunFolder.of(machines.config), reads=[songs / "in"], writes=[songs / "out"])
        assert sent is not None
        monkeypatch.setattr(store, "_written", {})  # the process of the task
        there = machines.on("node")

        def task() -> str:
            _write(there, "songs/out/b.wav", "made")
            return (there.root / "songs" / "in" / "a.wav").read_text()

        # The paths of a task are the command's: here each machine has its own.
        here = replace(sent, folder=RunFolder.of(machines.config))
        assert here.do(task) == ("sound", {})
        written = written_lately()
        monkeypatch.setattr(store, "_written", {})  # the command's again
        run = machines.on("head")
        note_written(written)
        run.pull("songs")
        assert _files(run) == {"songs/in/a.wav": "sound", "songs/out/b.wav": "made"}


def test_ray_train_removes_a_state_that_is_not_listed_yet(place: str) -> None:
    folder = RemoteFolder(place)
    with late_listings(lambda age: True):
        (folder / "states/1/state").write_bytes(b"1")
        blind, path = patient_place(folder, "states/1")
        assert blind.get_file_info(path).type == fs.FileType.NotFound
        system, path = patient_place(folder, "states/1", "state")
        system = pickle.loads(pickle.dumps(system))
        assert system == blind
        assert system.get_file_info(path).type == fs.FileType.Directory
        system.delete_dir(path)
        assert (folder / "states/1/state").found() is None
        assert system.get_file_info(path).type == fs.FileType.NotFound


# What is refused


def test_a_bucket_that_is_not_there_is_named(port: int) -> None:
    config = RunConfig(output_dir=address("run", port).replace("//bucket", "//nosuch"))
    with (
        pytest.raises(DataError, match=r"s3://nosuch/run.*bucket does not exist"),
        alone_in_run(config),
    ):
        raise AssertionError


@pytest.mark.parametrize("name", ["train/x/vocals.wav", "film/checkpoint/config.json", "notes.txt"])
def test_a_folder_of_something_else_is_no_run(place: str, name: str) -> None:
    put_object(place, name, b"mine")
    with pytest.raises(ConfigError, match=rf"output_dir: .*something else than a run \({name}\)"):
        parse(["--output_dir", place], "report")
    put_object(place, "config.json", b"{}")
    parse(["--output_dir", place], "report")
    assert object_names(place) == {name, "config.json"}
    with pytest.raises(ConfigError, match=r"output_dir: .*config\.json is an object, no folder"):
        parse(["--output_dir", place.replace("?", "/config.json?")], "report")


def test_shards_that_cannot_be_written_are_told_before_any_is_made(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Application.__call__

    def read_only(app: Application, environ: dict[str, Any], start: Any) -> Any:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return answer(app, environ, start)
        start("403 Forbidden", [("Content-Type", "application/xml")])
        return [b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"]

    monkeypatch.setattr(Application, "__call__", read_only)
    config = RunConfig(data=DataConfig(shards_dir=place, synthetic_train=1))
    message = (
        r"^shards_dir: s3://bucket/\S+ is not for every node: this machine cannot use it .*DENIED"
    )
    with pytest.raises(ConfigError, match=message):
        preprocess(config)
    with pytest.raises(ConfigError, match=message):
        list(doctor._CHECKS["shards"](config))


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ConfigError, match=r"output_dir: s4://bucket/run cannot be used"):
        parse(["--output_dir", "s4://bucket/run", "--preset", "demo"], "run")


def test_credentials_that_expire_are_waited_for_until_they_are_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, file = Application.__call__, tmp_path / "credentials"
    refused = 0

    def renew(key: str) -> None:
        file.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=secret\n")

    def only_new(app: Application, environ: dict[str, Any], start: Any) -> Any:
        nonlocal refused
        if "Credential=OLD/" not in environ.get("HTTP_AUTHORIZATION", ""):
            return answer(app, environ, start)
        refused += 1
        if refused > 3:
            renew("NEW")
        start("400 Bad Request", [("Content-Type", "application/xml")])
        return [b"<Error><Code>ExpiredToken</Code><Message>It has expired.</Message></Error>"]

    monkeypatch.setattr(store, "PAUSES_SECONDS", [0.0])
    monkeypatch.setattr(store, "RENEWAL_PAUSES_SECONDS", [0.01] * 9)
    monkeypatch.setattr(store, "_TOLD_SECONDS", 0.01)
    monkeypatch.setattr(Application, "__call__", only_new)
    shared = {"AWS_SHARED_CREDENTIALS_FILE": str(file)}
    with object_store() as port, mock.patch.dict(os.environ, shared):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del os.environ[name]
        renew("OLD")
        object_ = RemoteFolder(address("run", port)) / "x"
        object_.write_bytes(b"whole")
        assert object_.read_bytes() == b"whole"
    assert refused == 4
    assert "renew the credentials, if they have expired" in capsys.readouterr().err
