"""Shards in an object store: addresses, exact reads, faults, uploads."""

from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
from pyarrow import ArrowException, ArrowInvalid
from pydantic import ValidationError

import jobs.preprocess
from jobs.cli import parse
from lasaft.errors import ConfigError, DataError, StageError
from pipeline.cluster import store as storage
from pipeline.cluster.store import RemoteFolder, patiently
from pipeline.config import DataConfig, RunConfig, TrainConfig, from_json, to_json
from pipeline.config.folders import RunFolder
from pipeline.data.shards.manifest import read_manifest
from pipeline.data.shards.upload import upload_shards
from pipeline.data.windows.cache import ShardCache
from pipeline.data.windows.loader import validation_tracks
from pipeline.data.windows.reader import ShardSet
from pipeline.data.windows.remote import RemoteShardSet, open_shards
from pipeline.training.loop.worker import run_session
from pipeline.workflow import doctor
from tests.helpers.far_shards import LARGE, batches, entries_of, opened, same, wait_until_filled
from tests.helpers.object_store import (
    DroppingWay,
    address,
    delete_object,
    object_names,
    put_object,
)

# Addresses


def test_an_address_and_a_path_keep_their_kinds_through_json() -> None:
    for place in ("s3://bucket/a?region=eu-west-1", Path("/a/b"), None, "memory://a/b"):
        config = RunConfig(data=DataConfig(shards_dir=place))
        assert from_json(to_json(config)).data.shards_dir == place


def test_a_file_address_is_a_folder() -> None:
    assert DataConfig(shards_dir="file:///a/b%20c").shards_dir == Path("/a/b c")


def test_shards_for_an_address_are_made_below_the_output() -> None:
    config = RunConfig(output_dir=Path("/out"), data=DataConfig(shards_dir="s3://bucket/a"))
    folder = RunFolder.of(config)
    assert folder.shards == Path("/out/shards")
    assert folder.shards_address == "s3://bucket/a"


@pytest.mark.parametrize(
    "place",
    ["s3://KEY:hidden@bucket/a", "s3://KEY@bucket/a", "s3://b/a?secret_key=hidden",
     "https://user:hidden@host/a", "gs://b/a?access_token=hidden",
     "s3://b/a?endpoint_override=KEY:hidden@host", "s3://KEY:hid/den@b/a", "https://h/a?key=hidden",
     "https://h/a?api_key=hidden", "https://h/a?X-Amz-Signature=hidden", "s3://b/a#token=hidden",
     "abfs://c@account/a?sig=hidden", "hdfs://h/a;password=hidden"],
)  # fmt: skip
def test_secrets_in_an_address_are_refused_and_not_repeated(place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig(shards_dir=place)
    text = str(caught.value.errors(include_input=False, include_url=False)[0]["msg"])
    assert "shards_dir: the address holds a secret, allowed: secrets in the environment" in text
    assert "hidden" not in text
    assert "KEY" not in text.replace("ACCESS_KEY", "")


@pytest.mark.parametrize(
    "place",
    ["http://h:99999/a", "http://h:abc/a", "http://h:0/a", "http://[::1/a",
     "s3://b/a?endpoint_override=h:99999", "s3://b/a?endpoint_override=http://h:x"],
)  # fmt: skip
def test_an_address_at_which_nothing_can_be_is_refused(place: str) -> None:
    with pytest.raises(ValidationError, match=r"shards_dir: got .*, its .*, allowed: HOST"):
        DataConfig(shards_dir=place)


@pytest.mark.parametrize(
    "place",
    ["s3:/b/a", "s3:b/a", "s3//b/a", "S3;//b/a", "gs:/b/a", "file:/a", "abc:/x", Path("s3://b/a")],
)
def test_an_address_with_a_typo_in_its_scheme_is_no_folder(place: str | Path) -> None:
    with pytest.raises(ValidationError, match=r"shards_dir: got .*allowed: s3://bucket/folder, or"):
        DataConfig(shards_dir=place)
    if isinstance(place, str):
        with pytest.raises(ConfigError, match=r"output_dir: got .*allowed: s3://bucket/folder, or"):
            parse(["--output_dir", place], "report")


@pytest.mark.parametrize("place", ["runs/s3:/x", "s3/x", "a:b", "C:/x", "x//y"])
def test_a_path_with_a_colon_is_one(place: str) -> None:
    assert DataConfig(shards_dir=place).shards_dir == Path(place)


@pytest.mark.parametrize("place", ["hdfs://me@host:8020/a@b", "abfs://c@account/a", "s3://b/R&B"])
def test_an_address_with_a_name_or_an_at_is_one(place: str) -> None:
    assert DataConfig(shards_dir=place).shards_dir == place


@pytest.mark.parametrize(
    ("place", "reason"),
    [("https://h/a", "a web server takes no"), ("memory://a", "no other process sees")],
)
def test_what_takes_no_run_is_refused(place: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=rf"output_dir: got '{place}'.*{reason}"):
        RunConfig(output_dir=place)


@pytest.mark.parametrize("place", ["s3://", "1s://b/a", "file://host/a", "s3://b/../a", 7, ""])
def test_what_is_no_place_is_refused(place: object) -> None:
    with pytest.raises(ValidationError, match=r"shards_dir: got .*allowed: a"):
        DataConfig.model_validate({"shards_dir": place})


@pytest.mark.parametrize("place", ["nosuch://b/a", "github://b/a", "abfs://a"])
def test_a_store_that_cannot_be_opened_is_named(place: str) -> None:
    with pytest.raises(ConfigError, match=rf"shards_dir: {place} cannot be used"):
        read_manifest(RemoteFolder(place))


def test_google_s_client_leaves_patience_to_us() -> None:
    system, _ = RemoteFolder("gs://anonymous@b/a").place("")
    ((options,),) = system.__reduce__()[1:]
    assert options["retry_time_limit"].total_seconds() == 6


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (
            ArrowException("Unknown error: Failed to get token from DefaultAzureCredential."),
            DataError,
        ),
        (OSError("PERMISSION_DENIED: you may not"), DataError),
        (ArrowInvalid("what no store says"), ArrowInvalid),
    ],
)
def test_what_a_store_says_is_told_at_once(error: Exception, seen: type[Exception]) -> None:
    with pytest.raises(seen, match=str(error)):
        patiently("abfs://b/a", mock.Mock(side_effect=[error]))


# Exact reads


def test_batches_from_the_store_are_those_from_the_folder(
    local_run: RunConfig, local_shards: Path, store: RemoteFolder, tmp_path: Path
) -> None:
    own = ShardSet(local_shards)
    with opened(store, tmp_path / "cache") as far:
        assert far.manifest.hash == own.manifest.hash
        assert same(
            batches(far, local_run), batches(own, local_run)
        )  # from the store, while it fills
        wait_until_filled(far)  # three songs to train on, one to validate on
        assert same(batches(far, local_run, 1), batches(own, local_run, 1))  # from the cache
        for (_, one), (_, other) in zip(
            validation_tracks(far), validation_tracks(own), strict=True
        ):
            assert torch.equal(one.mixture, other.mixture)
            assert same(list(one.sources), list(other.sources))


def test_any_fsspec_store_can_hold_shards(
    local_run: RunConfig, local_shards: Path, tmp_path: Path
) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(local_shards), "/songs", recursive=True)
    with opened("memory://songs", tmp_path / "cache") as far:
        assert same(batches(far, local_run), batches(ShardSet(local_shards), local_run))


def test_a_run_opens_what_its_config_names(
    local_run: RunConfig, store_port: int, tmp_path: Path
) -> None:
    data = {
        "shards_dir": address("whole", store_port),
        "cache_dir": tmp_path / "cache",
        "cache_gb": 0.5,
    }
    config = local_run.model_copy(update={"data": local_run.data.model_copy(update=data)})
    with open_shards(config) as far, open_shards(local_run) as own:
        assert isinstance(far, RemoteShardSet)
        assert far.manifest == own.manifest
        assert same(batches(far, config), batches(own, local_run))
    assert threading.active_count() < 20  # the threads of the fetches are gone


def test_a_training_from_the_store_is_bit_identical(
    local_run: RunConfig, local_shards: Path, store_port: int, tmp_path: Path
) -> None:
    model = {"internal_channels": 4, "n_internal_layers": 1, "num_tdfs": 2, "dk": 4}
    weights = []
    for name, place in (("here", local_shards), ("there", address("whole", store_port))):
        config = RunConfig(
            output_dir=tmp_path / name,
            model=local_run.model.model_copy(update=model),
            data=DataConfig(shards_dir=place, cache_dir=tmp_path / "cache"),
            train=TrainConfig(batch_size=4, steps_per_epoch=4, max_epochs=1, num_workers=2),
        )
        result = run_session(config, torch.device("cpu"))
        assert result.steps == 4
        weights.append((result.checkpoint / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


# Faults


def test_a_missing_object_is_named(local_run: RunConfig, spoilt: str, tmp_path: Path) -> None:
    entry = read_manifest(RemoteFolder(spoilt)).split("train")[1].shards[0]
    delete_object(spoilt, entry.path)
    with opened(spoilt, tmp_path / "cache") as far, pytest.raises(DataError) as caught:
        batches(far, local_run)
    assert str(caught.value).startswith(f"{far.folder}/{entry.path}: there is no such object")


@pytest.mark.parametrize("limit", [LARGE, 1])
def test_a_damaged_object_is_named(
    local_run: RunConfig, local_shards: Path, spoilt: str, limit: int, tmp_path: Path
) -> None:
    entry = read_manifest(local_shards).split("train")[0].shards[0]
    data = bytearray((local_shards / entry.path).read_bytes())
    data[entry.offsets["bass"][0] + 1000] ^= 1
    put_object(spoilt, entry.path, bytes(data))
    with (
        opened(spoilt, tmp_path / "cache", limit) as far,
        pytest.raises(
            DataError, match=r"shard s3://bucket/.*arrow: (its sha256|is damaged)"
        ) as hit,
    ):
        for epoch in range(20):
            batches(far, local_run, epoch)
    assert entry.path in str(hit.value)
    assert "put it there again: python -m jobs.preprocess" in str(hit.value)
    assert not (tmp_path / "cache" / f"{entry.sha256}.arrow").exists()


def test_an_object_of_another_length_is_named(
    local_run: RunConfig, local_shards: Path, spoilt: str, tmp_path: Path
) -> None:
    entry = read_manifest(local_shards).split("train")[0].shards[0]
    put_object(spoilt, entry.path, (local_shards / entry.path).read_bytes()[:-8])
    with (
        opened(spoilt, tmp_path / "cache") as far,
        pytest.raises(DataError, match=f"has {entry.size_bytes - 8} bytes; the manifest says"),
    ):
        batches(far, local_run)


def test_no_manifest_says_where_it_should_be(store_port: int) -> None:
    with pytest.raises(DataError, match=r"shards_dir s3://bucket/none: there is no manifest.json"):
        read_manifest(RemoteFolder(address("none", store_port)))


def test_dropped_connections_do_no_harm(
    local_run: RunConfig, local_shards: Path, store_port: int, tmp_path: Path
) -> None:
    way = DroppingWay(store_port, drops=6, after_bytes=100_000)
    with opened(address("whole", way.port), tmp_path / "cache") as far:
        assert same(batches(far, local_run), batches(ShardSet(local_shards), local_run))
        wait_until_filled(far)
    way.close()
    assert way.drops <= 0, "nothing was dropped"


def test_a_store_that_goes_on_failing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_SECONDS", [0.0, 0.0])
    tries = 0

    def fail() -> None:
        nonlocal tries
        tries += 1
        raise OSError("curlCode: 7, could not connect")

    with pytest.raises(DataError, match=r"s3://b/a: the store fails .*, tried 3 times"):
        patiently("s3://b/a", fail)
    assert tries == 3
    assert patiently("a", iter([1]).__next__) == 1


def test_a_refusal_is_said_at_once() -> None:
    tries = 0

    def refuse() -> None:
        nonlocal tries
        tries += 1
        raise OSError("AWS Error ACCESS_DENIED during HeadObject operation")

    with pytest.raises(DataError, match=r"in the environment AWS_\*"):
        patiently("s3://b/a", refuse)
    assert tries == 1


def test_a_full_disk_is_named(
    local_run: RunConfig, store: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardCache, "publish", full)
    with (
        opened(store, tmp_path / "cache") as far,
        pytest.raises(
            StageError, match=r"cache_dir: the disk is full in .*cache while s3://bucket"
        ),
    ):
        for epoch in range(100):
            batches(far, local_run, epoch)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache_dir: cannot write in .*file \(File exists\)"):
        ShardCache(tmp_path / "file", LARGE)


# Putting shards into a store


def test_an_upload_goes_on_where_it_stopped(
    local_shards: Path, store_port: int, tmp_path: Path
) -> None:
    place, manifest = address(tmp_path.name, store_port), read_manifest(local_shards)
    store, entries = RemoteFolder(place), entries_of(manifest)
    assert upload_shards(local_shards, store, manifest) == len(entries)
    assert read_manifest(store) == manifest
    marks = {f"{entry.path}.sha256" for entry in entries}
    assert object_names(place) == {"manifest.json", *(entry.path for entry in entries), *marks}
    assert upload_shards(local_shards, store, manifest) == 0
    delete_object(place, f"{entries[1].path}.sha256")  # a kill between an object and its mark
    delete_object(place, entries[2].path)
    delete_object(place, "manifest.json")
    assert upload_shards(local_shards, store, manifest) == 2
    assert read_manifest(store) == manifest


def test_a_damaged_store_is_verified_and_repaired(
    local_run: RunConfig,
    local_shards: Path,
    store_port: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, manifest = address(tmp_path.name, store_port), read_manifest(local_shards)
    upload_shards(local_shards, RemoteFolder(place), manifest)
    first, second, third, *_ = entries_of(manifest)
    put_object(place, first.path, b"\0" * first.size_bytes)
    put_object(place, second.path, b"short")
    delete_object(place, third.path)
    words = ["--shards_dir", place, "--output_dir", str(local_run.output_dir)]
    capsys.readouterr()
    assert jobs.preprocess.main(["--verify", *words]) == 1
    said = capsys.readouterr().out
    for entry, what in ((first, "its sha256"), (second, "has 5 bytes"), (third, "is missing")):
        assert f"{entry.path}: {what}" in said
    assert jobs.preprocess.main(["--repair", *words]) == 0
    assert jobs.preprocess.main(["--verify", *words]) == 0
    assert "every byte is right" in capsys.readouterr().out


def test_a_shard_that_is_damaged_here_is_not_trusted_there(
    local_shards: Path, store_port: int, tmp_path: Path
) -> None:
    place, manifest = address(tmp_path.name, store_port), read_manifest(local_shards)
    folder, entry = shutil.copytree(local_shards, tmp_path / "copy"), entries_of(manifest)[0]
    (folder / entry.path).write_bytes(b"\0" * entry.size_bytes)
    with pytest.raises(DataError, match=r"its sha256 is not the manifest's; build it again"):
        upload_shards(folder, RemoteFolder(place), manifest)
    assert not {"manifest.json", f"{entry.path}.sha256"} & object_names(place)


def test_the_doctor_looks_at_the_store_and_the_room_for_copies(
    store_port: int, tmp_path: Path
) -> None:
    def texts(folder: str, gigabytes: float) -> list[str]:
        data = DataConfig(
            shards_dir=address(folder, store_port), cache_dir=tmp_path, cache_gb=gigabytes
        )
        checks = doctor._CHECKS["shards"](RunConfig(output_dir=tmp_path, data=data))
        return [f"{verdict}: {text}" for verdict, text in checks]

    assert texts("empty", 1)[0].startswith("note: s3://bucket/empty answers, and holds no shards")
    held, room = texts("whole", 1)
    assert held.startswith("ok: s3://bucket/whole holds 5 tracks, data hash ")
    assert room.startswith("ok: training reads 0.01 GB; cache_dir")
    assert "the rest is read from the store again and again" in texts("whole", 1e-3)[1]
