"""Batches: equal to a direct read of the plan, for any threads, ranks and starting step."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from lasaft.errors import ConfigError, DataError
from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.manifest import Manifest, TrackEntry
from pipeline.data.windows.draw_plan import DrawPlan, draw_plan
from pipeline.data.windows.loader import Batch, BatchLoader, read_spectrogram, validation_tracks
from pipeline.data.windows.reader import ShardSet
from tests.helpers.shards import make_shards, small_config
from tests.helpers.songs import make_musdb


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = tmp_path_factory.mktemp("loader")
    songs = make_musdb(root / "songs", train=2, valid=2, test=0, seconds=2.5)
    config = small_config(songs, root / "run")
    augmented = {
        "gain_probability": 0.5,
        "polarity_probability": 0.5,
        "channel_swap_probability": 0.5,
    }
    config = config.model_copy(update={"data": config.data.model_copy(update=augmented)})
    make_shards(config)
    return config


@pytest.fixture
def shards(config: RunConfig) -> ShardSet:
    return ShardSet(RunFolder.of(config).root / "shards")


@pytest.fixture
def plan(config: RunConfig, shards: ShardSet) -> DrawPlan:
    return draw_plan(shards.manifest, config, 2)


def _copies(loader: BatchLoader) -> list[Batch]:
    with loader:
        return [
            Batch(batch.mixture.clone(), batch.target.clone(), batch.condition.clone())
            for batch in loader
        ]


def _column(folder: Path | RemoteFolder, track: TrackEntry, source: str) -> torch.Tensor:
    """Read a whole column with Arrow alone: float32 [2 * channel, frame, bin]."""
    with pa.memory_map(str(folder / track.shards[0].path)) as file:
        rows = pa.ipc.open_file(file).read_all().column(source).combine_chunks()
        return torch.from_numpy(rows.to_numpy_ndarray().copy()).float().transpose(0, 1)


def _direct(
    folder: Path | RemoteFolder, manifest: Manifest, plan: DrawPlan, sample: int
) -> list[torch.Tensor]:
    """Return the changed sources of one sample, by the book."""
    windows = []
    for place, source in enumerate(manifest.settings.sources):
        track, start = plan.tracks[plan.track[sample, place]], plan.start[sample, place]
        window = _column(folder, track, source)[:, start : start + plan.num_frame]
        if plan.swap[sample, place]:
            window = window[[1, 0, 3, 2]]
        windows.append(window * float(plan.gain[sample, place]))
    return windows


def test_batches_equal_a_direct_read(shards: ShardSet, plan: DrawPlan) -> None:
    batches = _copies(BatchLoader(shards, plan))
    assert len(batches) == plan.steps == 6
    for step, batch in enumerate(batches):
        assert batch.mixture.dtype == batch.target.dtype == torch.float32
        for row, sample in enumerate(plan.samples(step, 0, 1)):
            windows = _direct(shards.folder, shards.manifest, plan, sample)
            condition = int(plan.condition[sample])
            assert batch.condition[row] == condition
            assert torch.equal(batch.target[row], windows[condition])
            mixture = windows[0] + windows[1] + windows[2] + windows[3]
            assert torch.equal(batch.mixture[row], mixture)


def test_the_target_of_a_set_is_the_sum_of_its_sources(shards: ShardSet, plan: DrawPlan) -> None:
    members = np.array([[1, 0, 1, 1], [0, 1, 0, 0]], np.float32)
    sets = replace(plan, members=members[np.arange(len(plan.condition)) % 2])
    for batch, single in zip(*(_copies(BatchLoader(shards, p)) for p in (sets, plan)), strict=True):
        assert torch.equal(batch.mixture, single.mixture)
        assert batch.condition.dtype == torch.float32
    batch = _copies(BatchLoader(shards, sets))[1]
    for row, sample in enumerate(plan.samples(1, 0, 1)):
        windows = _direct(shards.folder, shards.manifest, plan, sample)
        of_three = windows[0] + windows[2] + windows[3]
        assert torch.equal(batch.target[row], windows[1] if sample % 2 else of_three)
        assert batch.condition[row].tolist() == members[sample % 2].tolist()


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_do_not_change_a_bit(shards: ShardSet, plan: DrawPlan, threads: int) -> None:
    one, many = (_copies(BatchLoader(shards, plan, threads=count)) for count in (1, threads))
    for batch, other in zip(one, many, strict=True):
        assert torch.equal(batch.mixture, other.mixture)
        assert torch.equal(batch.target, other.target)
        assert torch.equal(batch.condition, other.condition)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_have_the_global_batch(
    shards: ShardSet, plan: DrawPlan, world_size: int
) -> None:
    whole = _copies(BatchLoader(shards, plan))
    parts = [
        _copies(BatchLoader(shards, plan, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.mixture, torch.cat([part[step].mixture for part in parts]))
        assert torch.equal(batch.target, torch.cat([part[step].target for part in parts]))


def test_an_epoch_goes_on_in_the_middle(shards: ShardSet, plan: DrawPlan) -> None:
    whole = _copies(BatchLoader(shards, plan))
    loader = BatchLoader(shards, plan, start_step=4, threads=2)
    assert len(loader) == 2
    for batch, other in zip(_copies(loader), whole[4:], strict=True):
        assert torch.equal(batch.mixture, other.mixture)
    assert _copies(BatchLoader(shards, plan, start_step=6)) == []


def test_buffers_are_used_again(shards: ShardSet, plan: DrawPlan) -> None:
    with BatchLoader(shards, plan) as loader:
        places = [batch.mixture.data_ptr() for batch in loader]
    assert len(places) == 6
    assert len(set(places)) <= 3


def test_waiting_is_counted(shards: ShardSet, plan: DrawPlan) -> None:
    loader = BatchLoader(shards, plan)
    assert loader.wait_seconds == 0
    _copies(loader)
    assert loader.wait_seconds > 0


def test_threads_end_when_the_loop_is_left(shards: ShardSet, config: RunConfig) -> None:
    train = config.train.model_copy(update={"steps_per_epoch": 100})
    plan = draw_plan(shards.manifest, config.model_copy(update={"train": train}), 0)
    before = threading.active_count()
    with BatchLoader(shards, plan, threads=4) as loader:
        for _ in loader:
            assert threading.active_count() > before
            break
    assert threading.active_count() == before


def test_damage_is_raised_where_the_batches_are_used(
    tmp_path: Path, config: RunConfig, plan: DrawPlan
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(RunFolder.of(config).root / "shards", folder)
    entry = plan.tracks[0].shards[0]
    victim = folder / entry.path
    data = bytearray(victim.read_bytes())
    data[entry.offsets["bass"][0] + 1000] ^= 1
    victim.write_bytes(data)
    before = threading.active_count()
    with (
        pytest.raises(DataError, match="is damaged in column bass, record batch 0") as caught,
        BatchLoader(ShardSet(folder), plan, threads=2) as loader,
    ):
        for _ in loader:
            pass
    assert victim.name in str(caught.value)
    assert threading.active_count() == before


def test_more_processes_than_windows_are_refused(shards: ShardSet, plan: DrawPlan) -> None:
    with pytest.raises(ConfigError, match="batch_size: got 4"):
        BatchLoader(shards, plan, world_size=5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_pinning_without_a_gpu_is_refused(shards: ShardSet, plan: DrawPlan) -> None:
    with pytest.raises(ConfigError, match="pin_memory: got True; this process sees no GPU"):
        BatchLoader(shards, plan, pin_memory=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_buffers_wait_for_copies_to_the_gpu(shards: ShardSet, plan: DrawPlan) -> None:
    whole = _copies(BatchLoader(shards, plan))
    with BatchLoader(shards, plan, pin_memory=True) as loader:
        busy = torch.rand(4096, 4096, device="cuda")
        copies = []
        for batch in loader:
            for _ in range(20):
                busy = (busy @ busy).clamp(-1, 1)  # the copy waits behind this
            copies.append(batch.mixture.to("cuda", non_blocking=True))
    for batch, copy in zip(whole, copies, strict=True):
        assert torch.equal(batch.mixture, copy.cpu())


def test_validation_walks_whole_tracks(shards: ShardSet) -> None:
    entries = shards.manifest.split("valid")
    found = list(validation_tracks(shards))
    assert [place for place, _ in found] == [0, 1]
    for (_, track), entry in zip(found, entries, strict=True):
        assert (track.name, track.samples) == (entry.name, entry.samples)
        assert torch.equal(track.mixture, _column(shards.folder, entry, "mixture"))
        assert len(track.sources) == 4
        for index, source in enumerate(shards.manifest.settings.sources):
            assert torch.equal(track.sources[index], _column(shards.folder, entry, source))
        assert [tensor.shape for tensor in track.sources[1:3]] == [track.mixture.shape] * 2


def test_validation_tracks_are_shared_among_processes(shards: ShardSet) -> None:
    shares = [
        [(place, track.name) for place, track in validation_tracks(shards, rank=rank, world_size=2)]
        for rank in range(2)
    ]
    names = [track.name for track in shards.manifest.split("valid")]
    assert shares == [[(0, names[0])], [(1, names[1])]]


def test_a_whole_column_is_read_as_float32(shards: ShardSet) -> None:
    track = shards.manifest.split("train")[0]
    spec = read_spectrogram(shards, track, "bass")
    assert spec.shape == (4, track.frames, 257)
    assert torch.equal(spec, _column(shards.folder, track, "bass"))
