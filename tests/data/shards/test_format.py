"""Shards: what is in them, that any program can read them, and that every damage is found."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from lasaft.errors import ConfigError, DataError
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.inspect import inspect_shards
from pipeline.data.shards.manifest import Manifest, read_manifest
from pipeline.data.songs.tracks import list_tracks, read_track
from pipeline.data.songs.wanted import Wanted
from pipeline.data.windows.reader import ShardSet
from tests.helpers import damage
from tests.helpers.runs import config_of, unpack
from tests.helpers.shards import make_shards, small_config
from tests.helpers.songs import make_musdb


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = tmp_path_factory.mktemp("shards")
    return small_config(
        make_musdb(root / "songs", train=2, valid=1, test=0, seconds=3.2), root / "run"
    )


@pytest.fixture(scope="module")
def manifest(config: RunConfig) -> Manifest:
    return make_shards(config)


@pytest.fixture(scope="module")
def folder(config: RunConfig, manifest: Manifest) -> Path:
    assert manifest.tracks
    return RunFolder.of(config).root / "shards"


def _read_all(folder: Path) -> None:
    """Read every window of every column as training and validation do."""
    shards = ShardSet(folder)
    for track in shards.manifest.tracks:
        out = torch.empty(4, track.frames, 257)
        for column in shards.manifest.settings.columns:
            shards.read_window(track, column, 0, out)


def test_inverse_stft_gives_the_audio_back(config: RunConfig, folder: Path) -> None:
    shards = ShardSet(folder)
    tracks = list_tracks(RunFolder.of(config).songs, Wanted(config.model.sources))
    for track, entry in zip(tracks, shards.manifest.tracks, strict=True):
        audio = read_track(track)
        window = torch.hann_window(512)
        truths = torch.cat([audio.sources, audio.mixture[None]])
        for column, truth in zip(shards.manifest.settings.columns, truths, strict=True):
            rows = torch.empty(4, entry.frames, 257)
            shards.read_window(entry, column, 0, rows)
            spec = torch.complex(rows[:2], rows[2:]).transpose(1, 2)
            back = torch.istft(spec, 512, 256, window=window, length=truth.shape[1])
            snr = 10 * torch.log10(truth.square().sum() / (truth - back).square().sum())
            assert snr >= 70, f"{entry.name}, {column}: float16 keeps 76 dB"


def test_plain_arrow_reads_the_same_rows(folder: Path, manifest: Manifest) -> None:
    track = manifest.tracks[0]
    with pa.memory_map(str(folder / track.shards[0].path)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.num_rows == track.frames
    assert table.column_names == ["vocals", "drums", "bass", "other", "mixture"]
    assert table.schema.field("vocals").type == pa.fixed_shape_tensor(pa.float16(), (4, 257))
    assert table.schema.metadata[b"track"] == f"train/{track.name}".encode()
    out = torch.empty(4, track.frames, 257, dtype=torch.float16)
    for column in table.column_names:
        rows = table.column(column).combine_chunks().to_numpy_ndarray()
        ShardSet(folder, manifest).read_window(track, column, 0, out)
        np.testing.assert_array_equal(rows.transpose(1, 0, 2), out.numpy())


def test_arrow_batches_carry_their_checksums(folder: Path, manifest: Manifest) -> None:
    entry = manifest.tracks[0].shards[0]
    with pa.memory_map(str(folder / entry.path)) as source:
        reader = pa.ipc.open_file(source)
        said = [reader.get_batch_with_custom_metadata(i) for i in range(reader.num_record_batches)]
    checksums = [batch.custom_metadata[b"crc32.bass"].decode() for batch in said]
    assert checksums == [f"{value:08x}" for value in entry.crc32["bass"]]


def test_the_mixture_column_is_the_stored_mixture_not_the_sum(
    tmp_path: Path, config: RunConfig
) -> None:
    import soundfile

    assert config.data.musdb_root is not None
    songs = tmp_path / "songs"
    shutil.copytree(config.data.musdb_root, songs)
    for file in songs.glob("*/*/mixture.wav"):
        audio, rate = soundfile.read(str(file), dtype="int16")
        soundfile.write(str(file), audio // 2, rate, subtype="PCM_16")
    own = small_config(songs, tmp_path / "run")
    halved, whole = make_shards(own), make_shards(config)
    track, rows = whole.tracks[0], torch.empty(2, 4, whole.tracks[0].frames, 257)
    ShardSet(tmp_path / "run" / "shards", halved).read_window(
        halved.tracks[0], "mixture", 0, rows[0]
    )
    ShardSet(RunFolder.of(config).root / "shards", whole).read_window(track, "mixture", 0, rows[1])
    ratio = rows[0].square().sum() / rows[1].square().sum()
    assert ratio == pytest.approx(0.25, rel=0.01)  # the halving rounds to 16 bits


def test_windows_cross_batches_and_end_in_zeros(folder: Path, manifest: Manifest) -> None:
    shards, track = ShardSet(folder, manifest), manifest.tracks[0]
    assert track.frames > 512
    whole = torch.empty(4, track.frames, 257)
    shards.read_window(track, "drums", 0, whole)
    for start, count in ((200, 400), (255, 2), (256, 1), (track.frames - 3, 10)):
        window = torch.full((4, count, 257), torch.nan)
        shards.read_window(track, "drums", start, window)
        inside = min(count, track.frames - start)
        assert torch.equal(window[:, :inside], whole[:, start : start + inside])
        assert (window[:, inside:] == 0).all()


def test_shards_of_several_grids_hold_those_of_one(
    tmp_path: Path, config: RunConfig, folder: Path
) -> None:
    data = config.data.model_copy(update={"max_frames_per_shard": 300, "phases": 2})
    several = make_shards(config.model_copy(update={"output_dir": tmp_path, "data": data}))
    whole, shards = read_manifest(folder), ShardSet(tmp_path / "shards", several)
    track, before = several.tracks[0], whole.tracks[0]
    assert (track.frames, track.levels) == (before.frames, before.levels)
    sizes = [sum(shard.size_bytes for shard in one.shards) for one in (track, before)]
    assert sizes[0] == pytest.approx(9 / 5 * sizes[1], rel=0.01)  # the mixture is there once
    one, other, later = torch.empty(3, 4, 300, 257)
    shards.read_window(track, "bass", 2 * 130, one)
    ShardSet(folder, whole).read_window(before, "bass", 130, other)
    assert torch.equal(one, other)
    shards.read_window(track, "bass", 2 * 130 + 1, later)
    audio = read_track(list_tracks(RunFolder.of(config).songs, Wanted(config.model.sources))[0])
    first = 130 * 256 + 128 - 256  # half a hop later; frames are centred
    samples = audio.sources[2, :, first : first + 299 * 256 + 512]
    window = torch.hann_window(512)
    spec = torch.stft(samples, 512, 256, window=window, center=False, return_complex=True)
    truth = torch.cat([spec.real, spec.imag]).transpose(1, 2)
    torch.testing.assert_close(later, truth, rtol=2**-10, atol=1e-3)
    assert "phases" not in whole.settings.model_dump_json()


def test_a_long_track_is_several_shards(tmp_path: Path, config: RunConfig, folder: Path) -> None:
    data = config.data.model_copy(update={"max_frames_per_shard": 300})
    split = config.model_copy(update={"output_dir": tmp_path, "data": data})
    manifest, whole = make_shards(split), read_manifest(folder)
    track = manifest.tracks[0]
    assert [shard.frames for shard in track.shards] == [256, 256, track.frames - 512]
    one, other = torch.empty(2, 4, 300, 257)
    ShardSet(tmp_path / "shards", manifest).read_window(track, "bass", 130, one)
    ShardSet(folder, whole).read_window(whole.tracks[0], "bass", 130, other)
    assert torch.equal(one, other)


def test_levels_are_those_of_the_audio(config: RunConfig, manifest: Manifest) -> None:
    track = list_tracks(RunFolder.of(config).songs, Wanted(config.model.sources))[0]
    drums = read_track(track).sources[1].double()
    level = manifest.tracks[0].levels["drums"]
    assert level.peak == drums.abs().max()
    assert level.rms == pytest.approx(float(drums.square().mean().sqrt()), rel=1e-5)


def test_levels_do_not_depend_on_where_a_track_is_cut(
    tmp_path: Path, config: RunConfig, manifest: Manifest
) -> None:
    data = config.data.model_copy(update={"max_frames_per_shard": 256})
    cut = make_shards(config.model_copy(update={"output_dir": tmp_path, "data": data}))
    for track, whole in zip(cut.tracks, manifest.tracks, strict=True):
        assert len(track.shards) > len(whole.shards)
        for column, level in whole.levels.items():
            assert track.levels[column].peak == level.peak
            assert track.levels[column].rms == pytest.approx(level.rms, rel=1e-6)


def test_sound_shards_verify(folder: Path) -> None:
    assert inspect_shards(folder).faults == ()
    _read_all(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> damage.Place:
    return damage.Place.make(tmp_path_factory.mktemp("damage"))


def test_every_damage_is_found_before_a_window_leaves(place: damage.Place) -> None:
    kinds, missed = damage.run(place, count=200, seed=1)
    assert missed == []
    assert len(kinds) == 12, "six kinds, of shards and of the manifest"
    assert damage.gets_through(place) == "nothing was noticed", "all damages were undone"


def test_verification_names_the_damaged_file(place: damage.Place) -> None:
    draw = random.Random(2)
    for _ in range(30):
        with damage.damaged(place, draw) as (kind, victim):
            if kind == "manifest: missing":
                continue
            faults = inspect_shards(place.folder).faults
            assert faults[0].path == str(victim.relative_to(place.folder))
            assert len(faults) == 1 or victim.name == "manifest.json"


def test_a_stale_manifest_is_found(tmp_path: Path, config: RunConfig, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "shards")
    songs = make_musdb(tmp_path / "songs", train=2, valid=1, test=0, seconds=3.2, seed=5)
    make_shards(small_config(songs, tmp_path / "other"))
    for own in (tmp_path / "shards").glob("*/*.arrow"):
        other = sorted((tmp_path / "other" / "shards" / own.parent.name).glob("*.arrow"))[0]
        own.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match="is damaged"):
        _read_all(tmp_path / "shards")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "is damaged, not JSON"),
        (lambda text: "[1]", "has format None"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2; allowed: 1"),
        (lambda text: text.replace('"n_fft": 512', '"n_fft": 513'), "is damaged"),
        (lambda text: text.replace('"peak":0', '"peak":1'), "is damaged: its content has the hash"),
        (lambda text: text.replace('"path":"train/', '"path":"../'), "leaves the shard folder"),
        (lambda text: text.replace('"path":"train/', '"path":"/'), "leaves the shard folder"),
        (lambda text: text.replace('"samples"', '"sample"', 1), "is damaged at tracks.0"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, folder: Path, change, message: str) -> None:
    text = (folder / "manifest.json").read_text("utf-8")
    changed = change(text)
    assert changed != text
    (tmp_path / "manifest.json").write_text(changed, "utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_songs_of_version_0_1_give_its_hash(tmp_path: Path) -> None:
    unpack(tmp_path)
    manifest = make_shards(config_of(tmp_path, "finished", shards_dir=tmp_path / "new"))
    assert manifest.hash == "d6dfe1c6a6c1e7917b27aba60b7773681032c959b63000d75cb51097815dfbd6"
    text = (tmp_path / "finished" / "shards" / "manifest.json").read_bytes()
    assert (tmp_path / "new" / "manifest.json").read_bytes() == text


def test_a_missing_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no manifest\.json; run: python -m jobs\.prep"):
        read_manifest(tmp_path)


def test_the_manifest_survives_writing_and_reading(folder: Path, manifest: Manifest) -> None:
    assert read_manifest(folder) == manifest
    assert read_manifest(folder).hash == manifest.hash
    assert json.loads((folder / "manifest.json").read_text())["hash"] == manifest.hash


def test_the_hash_does_not_know_the_place(tmp_path: Path, config: RunConfig, folder: Path) -> None:
    shutil.copytree(RunFolder.of(config).songs, tmp_path / "elsewhere")
    other = make_shards(small_config(tmp_path / "elsewhere", tmp_path / "run"))
    assert other.hash == read_manifest(folder).hash


def test_a_network_with_another_stft_is_refused(config: RunConfig, manifest: Manifest) -> None:
    manifest.require_model(config.model)
    changed = config.model.model_copy(update={"n_fft": 1024, "sources": ("a", "b")})
    with pytest.raises(ConfigError) as caught:
        manifest.require_model(changed)
    assert len(caught.value.problems) == 2
    assert "n_fft: got 1024; the shards were made with 512" in str(caught.value)


def test_more_shards_than_may_be_open_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.windows.reader._MOST_OPEN_SHARDS", 1)
    shards = ShardSet(folder)
    out = torch.empty(4, 10, 257)
    for track in [*shards.manifest.tracks, *shards.manifest.tracks]:
        shards.read_window(track, "vocals", 0, out)
        assert len(shards._open) == 1


def test_float16_bits_are_those_of_the_file(folder: Path, manifest: Manifest) -> None:
    track = manifest.tracks[0]
    shard = track.shards[0]
    row = torch.empty(4, 1, 257, dtype=torch.float16)
    ShardSet(folder, manifest).read_window(track, "other", 3, row)
    data = (folder / shard.path).read_bytes()
    at = shard.offsets["other"][0] + 3 * 4 * 257 * 2
    assert struct.unpack("<257e", data[at : at + 514]) == tuple(row[0, 0].tolist())
