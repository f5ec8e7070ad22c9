"""The draw plan: a pure function, fair, complete, and the same for any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lasaft.config import ModelConfig
from lasaft.errors import ConfigError, DataError
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data.shards.manifest import Level, Manifest, ShardEntry, ShardSettings, TrackEntry
from pipeline.data.windows.draw_plan import (
    DrawPlan,
    draw_plan,
    steps_per_epoch,
    target_conditions,
)
from pipeline.data.windows.shares import require_shares, rows_of_process

SOURCES = ("vocals", "drums", "bass", "other")
ARRAYS = (
    "track", "start", "condition", "gain", "swap", "share", "second_track", "second_start",
)  # fmt: skip


def _manifest(
    *frames: int,
    split: str = "train",
    peak: float = 0.5,
    lacking: tuple[str, ...] = (),
    phases: int = 1,
) -> Manifest:
    """Tracks of so many frames; those with an odd number lack some sources."""
    settings = ShardSettings(
        sources=SOURCES,
        channels=2,
        sample_rate=44100,
        n_fft=2048,
        hop_length=1024,
        max_frames_per_shard=65536,
        phases=phases,
    )
    tracks = []
    for number, count in enumerate(frames):
        silent = lacking if number % 2 else ()
        batches = -(-count // 256)
        shard = ShardEntry(
            path=f"{split}/{number}.arrow",
            frames=count,
            size_bytes=10**9,
            sha256="0" * 64,
            offsets=dict.fromkeys(settings.columns, (8,) * batches),
            crc32=dict.fromkeys(settings.columns, (0,) * batches),
            rest_crc32=0,
        )
        tracks.append(
            TrackEntry.model_validate(
                {
                    "name": str(number),
                    "split": split,
                    "samples": (count - 1) * 1024,
                    "frames": count,
                    "source_sha256": "0" * 64,
                    "levels": {
                        column: Level(peak=0 if column in silent else peak, rms=0.1)
                        for column in settings.columns
                    },
                    "shards": (shard,),
                }
            )
        )
    return Manifest(settings=settings, tracks=tuple(tracks))


def _config(
    *, num_frame: int = 128, data: Any = None, vector: Any = "embedding", **train: Any
) -> RunConfig:
    return RunConfig(
        output_dir=Path("nowhere"),
        model=ModelConfig(num_frame=num_frame, control_vector_type=vector),
        data=DataConfig(**(data or {})),
        train=TrainConfig(**{"batch_size": 8, "steps_per_epoch": 50, **train}),
    )


def _equal(one: DrawPlan, other: DrawPlan) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS)


@pytest.mark.parametrize("draw", ["iid", "coverage"])
def test_the_plan_depends_on_seed_epoch_and_manifest_alone(draw: str) -> None:
    manifest, data = _manifest(1000, 500, 300), {"draw": draw}
    plan = draw_plan(manifest, _config(data=data), 3)
    assert _equal(plan, draw_plan(_manifest(1000, 500, 300), _config(data=data), 3))
    assert not _equal(plan, draw_plan(manifest, _config(data=data), 4))
    assert not _equal(plan, draw_plan(manifest, _config(data=data, seed=1), 3))
    assert not _equal(plan, draw_plan(_manifest(1000, 500, 300, peak=0.6), _config(data=data), 3))


@pytest.mark.parametrize("draw", ["iid", "coverage"])
def test_every_window_lies_inside_its_track(draw: str) -> None:
    manifest = _manifest(128, 129, 5000, 100)
    plan = draw_plan(manifest, _config(data={"draw": draw}), 0)
    assert [track.frames for track in plan.tracks] == [128, 129, 5000]
    assert plan.steps == 50
    lengths = np.array([track.frames for track in plan.tracks])
    assert plan.start.min() >= 0
    assert (plan.start + 128 <= lengths[plan.track]).all()
    assert plan.track.shape == plan.start.shape == (400, 4)


def test_sources_are_drawn_from_tracks_of_their_own() -> None:
    plan = draw_plan(_manifest(*[1000] * 10), _config(steps_per_epoch=500), 0)
    same = (plan.track[:, 0] == plan.track[:, 1]).mean()
    assert same == pytest.approx(0.1, abs=0.02)  # of 4000 draws: 4 deviations
    counts = np.bincount(plan.track.ravel(), minlength=10) / plan.track.size
    np.testing.assert_allclose(counts, 0.1, atol=0.012)
    targets = np.bincount(plan.condition, minlength=4) / len(plan.condition)
    np.testing.assert_allclose(targets, 0.25, atol=0.035)


def _reads(plan: DrawPlan, place: int, rows: np.ndarray) -> list[np.ndarray]:
    """Return how often each frame of each track is read of a source, in some samples."""
    counts = [np.zeros(track.frames, int) for track in plan.tracks]
    for track, start in zip(plan.track[rows, place], plan.start[rows, place], strict=True):
        counts[track][start : start + plan.num_frame] += 1
    return counts


@pytest.mark.parametrize("remix", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("names", [None, ("drums", "other")])
def test_coverage_makes_every_frame_of_every_target_a_target(
    remix: float, names: tuple[str, ...] | None
) -> None:
    data = {"draw": "coverage", "remix_probability": remix}
    lengths, windows = (1000, 517, 256, 128, 100), 8 + 5 + 2 + 1
    # A batch that the epoch is a multiple of, so that nothing comes on top.
    config = _config(data=data, steps_per_epoch=None, target_names=names)
    plans = [draw_plan(_manifest(*lengths), config, epoch) for epoch in range(3)]
    targets = [SOURCES.index(name) for name in names or SOURCES]
    for plan in plans:
        assert sorted(plan.condition.tolist()) == sorted(targets * windows)
        for place in targets:
            for counts in _reads(plan, place, plan.condition == place):
                # As few windows as there can be, no frame in three of them, the ends in one.
                assert set(counts) <= {1, 2}
                assert counts[0] == counts[-1] == 1
                assert counts.sum() == -(-len(counts) // 128) * 128
        for place in range(4) if remix == 1 else ():
            beside = plan.condition != place
            for counts in _reads(plan, place, beside):
                times = beside.sum() // windows
                assert times <= counts.min() <= counts.max() <= 2 * times
    assert not _equal(plans[0], plans[1])


def test_a_pass_of_many_epochs_covers_every_target_in_all_of_them() -> None:
    manifest = _manifest(1000, 517)
    config = _config(data={"draw": "coverage"}, steps_per_epoch=3)
    # 13 windows for each of 4 targets are 52; an epoch has 24.
    for first in (0, 3, 6):
        plans = [draw_plan(manifest, config, first + epoch) for epoch in range(3)]
        for place in range(4):
            reads = [_reads(plan, place, plan.condition == place) for plan in plans]
            for counts in zip(*reads, strict=True):
                assert np.sum(counts, axis=0).min() >= 1


def test_coverage_reads_no_part_of_a_song_more_often_than_another() -> None:
    manifest, total = _manifest(1200), np.zeros(1200)
    config = _config(data={"draw": "coverage"}, steps_per_epoch=None)
    for epoch in range(200):
        plan = draw_plan(manifest, config, epoch)
        for place in range(4):
            total += _reads(plan, place, np.ones(len(plan.condition), bool))[0]
    # 10 windows for 1200 frames: 80 of them are read twice, anywhere.
    assert total.mean() == 200 * 4 * 4 * 1280 / 1200
    parts = total.reshape(10, 120).mean(axis=1) / total.mean()
    np.testing.assert_allclose(parts, 1, atol=0.03)


@pytest.mark.parametrize("draw", ["iid", "coverage"])
@pytest.mark.parametrize("remix", [1.0, 0.5])
def test_windows_are_on_each_grid_as_often(draw: str, remix: float) -> None:
    data = {"draw": draw, "mixup_probability": 0.5, "remix_probability": remix}
    plan = draw_plan(_manifest(*[1000] * 50, phases=4), _config(data=data, steps_per_epoch=500), 0)
    for start in (plan.start, plan.second_start):
        assert 0 <= start.min() <= start.max() < 4 * (1000 - 128 + 1)
        # Of 16,000 draws 5 deviations, with coverage of 50 tracks times 4 sources.
        few = draw == "coverage" and start is plan.start
        share = np.bincount(start.ravel() % 4, minlength=4) / start.size
        np.testing.assert_allclose(share, 0.25, atol=0.15 if few else 0.018)
    whole = (plan.start == plan.start[:, :1]).all(axis=1).mean()
    assert whole == pytest.approx(1 - remix, abs=0.05)


def test_coverage_covers_on_one_grid_of_each_song_and_source() -> None:
    config = _config(data={"draw": "coverage"}, steps_per_epoch=3)
    for first in (0, 3):
        plans = [draw_plan(_manifest(1000, 517, phases=4), config, first + n) for n in range(3)]
        for place in range(4):
            tracks = np.concatenate([plan.track[:, place] for plan in plans])
            grids = np.concatenate([plan.start[:, place] for plan in plans]) % 4
            assert all(len(set(grids[tracks == track])) == 1 for track in (0, 1))


@pytest.mark.parametrize(("world_size", "micro_batches"), [(2, 1), (2, 2), (2, 4), (4, 2), (8, 1)])
def test_processes_share_every_micro_batch_and_together_have_it(
    world_size: int, micro_batches: int
) -> None:
    plan = draw_plan(_manifest(1000), _config(accumulate_grad_batches=micro_batches), 0)
    share = 8 // (micro_batches * world_size)
    for step in (0, 7, 49):
        whole = plan.samples(step, 0, 1)
        assert whole == list(range(8 * step, 8 * step + 8))
        parts = [plan.samples(step, rank, world_size) for rank in range(world_size)]
        assert [
            sample
            for micro in range(micro_batches)
            for part in parts
            for sample in part[micro * share : (micro + 1) * share]
        ] == whole
    assert plan.samples(49, 0, 1)[-1] == len(plan.condition) - 1


@pytest.mark.parametrize(("world_size", "micro_batches"), [(3, 1), (5, 1), (7, 1), (3, 2)])
def test_processes_share_a_batch_that_they_do_not_divide(
    world_size: int, micro_batches: int
) -> None:
    parts = [rows_of_process(8, micro_batches, rank, world_size) for rank in range(world_size)]
    assert sorted(row for part in parts for row in part) == list(range(8))
    windows = 8 // micro_batches
    for first in range(0, 8, windows):
        shares = [sum(first <= row < first + windows for row in part) for part in parts]
        assert max(shares) - min(shares) == 1
        assert min(shares) >= 1


def test_more_processes_than_windows_of_a_micro_batch_are_refused() -> None:
    require_shares(8, 2, 4)
    with pytest.raises(ConfigError, match="batch_size: got 8; allowed: at least 10"):
        require_shares(8, 2, 5)


def test_an_epoch_has_as_many_windows_as_fit_in_the_tracks_times_targets() -> None:
    manifest = _manifest(1000, 500, 100)
    assert steps_per_epoch(manifest, _config(steps_per_epoch=None)) == (7 + 3 + 0) * 4 // 8
    one = _config(steps_per_epoch=None, target_names=("bass",))
    assert steps_per_epoch(manifest, one) == 1
    assert steps_per_epoch(manifest, _config(steps_per_epoch=None, batch_size=512)) == 1
    covering = _config(data={"draw": "coverage"}, steps_per_epoch=None, batch_size=10)
    assert steps_per_epoch(manifest, covering) == 5  # (8 + 4 + 0) * 4 = 48


def test_single_target_training_draws_that_target_alone() -> None:
    plan = draw_plan(_manifest(1000), _config(target_names=("other", "drums")), 0)
    assert set(plan.condition.tolist()) == {1, 3}


@pytest.mark.parametrize(("names", "got"), [(("piano",), "piano"), ((), "none")])
def test_an_unknown_target_is_refused(names: tuple[str, ...], got: str) -> None:
    with pytest.raises(ConfigError, match=f"target_names: got {got}; allowed: vocals, drums"):
        target_conditions(_manifest(1000), names)


def test_tracks_that_are_all_too_short_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_frame: got 128; allowed: at most 100"):
        draw_plan(_manifest(100, 50), _config(), 0)


def test_songs_that_hold_no_window_are_named() -> None:
    assert not _manifest(128, 500).too_short(128)
    text = _manifest(127, 500, 2).too_short(128)
    assert text.startswith("2 training songs are shorter than a window (num_frame 128) and never")
    assert text.endswith("drawn: 0, 2")
    assert _manifest(*[2] * 7).too_short(8).endswith("drawn: 0, 1, 2, 3, 4, ...")


def test_shards_without_a_training_track_are_refused() -> None:
    with pytest.raises(DataError, match="no training track"):
        draw_plan(_manifest(1000, split="test"), _config(), 0)


def test_without_augmentation_nothing_is_changed() -> None:
    plan = draw_plan(_manifest(1000), _config(), 0)
    assert (plan.gain == 1).all()
    assert not plan.swap.any()
    assert not plan.share.any()


def test_augmentations_come_as_often_and_as_strong_as_asked() -> None:
    data = {
        "gain_probability": 0.5,
        "gain_db": 6.0,
        "polarity_probability": 0.25,
        "channel_swap_probability": 0.75,
        "mixup_probability": 0.5,
        "mixup_share": 0.4,
    }
    manifest = _manifest(1000)
    plan = draw_plan(manifest, _config(data=data, steps_per_epoch=500), 0)
    assert (np.abs(plan.gain) != 1).mean() == pytest.approx(0.5, abs=0.02)
    assert (plan.gain < 0).mean() == pytest.approx(0.25, abs=0.02)
    assert plan.swap.mean() == pytest.approx(0.75, abs=0.02)
    assert np.abs(plan.gain).max() == pytest.approx(10**0.3, rel=0.01)
    assert np.abs(plan.gain).min() == pytest.approx(10**-0.3, rel=0.01)
    assert (plan.share > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert plan.share.max() == pytest.approx(0.4, rel=0.01)
    assert plan.share[plan.share > 0].mean() == pytest.approx(0.2, rel=0.03)
    assert 0 <= plan.second_start.min() <= plan.second_start.max() <= 1000 - 128
    plain = draw_plan(manifest, _config(steps_per_epoch=500), 0)
    assert np.array_equal(plain.start, plan.start)
    assert np.array_equal(plain.condition, plan.condition)


def test_mixtures_that_are_not_remixed_are_as_in_the_song() -> None:
    manifest = _manifest(*[1000] * 10)
    plain = draw_plan(manifest, _config(steps_per_epoch=500), 0)
    data = {"remix_probability": 0.25}
    plan = draw_plan(manifest, _config(data=data, steps_per_epoch=500), 0)
    assert np.array_equal(plain.condition, plan.condition)
    every = np.arange(len(plan.condition))
    for drawn, before in ((plan.track, plain.track), (plan.start, plain.start)):
        assert np.array_equal(drawn[every, plan.condition], before[every, plan.condition])
    together = ((plan.track == plan.track[:, :1]) & (plan.start == plan.start[:, :1])).all(axis=1)
    assert together.mean() == pytest.approx(0.75, abs=0.03)  # of 4000: 4 deviations
    assert np.array_equal(plan.track[~together], plain.track[~together])


def test_the_windows_of_a_sample_are_all_that_are_read() -> None:
    data = {"mixup_probability": 0.5}
    plan = draw_plan(_manifest(1000, 500), _config(data=data), 0)
    for sample in (0, 17, 399):
        windows = list(plan.windows(sample))
        assert len(windows) == 4 + (plan.share[sample] > 0).sum()
        assert windows == [one for place in range(4) for one in plan.windows(sample, place)]


@pytest.mark.parametrize("draw", ["iid", "coverage"])
def test_sets_are_drawn_by_size_and_evenly_and_leave_all_else_as_it_was(draw: str) -> None:
    manifest, data = _manifest(*[1000] * 10), {"draw": draw, "set_sizes": (2.0, 1.0, 0.0, 1.0)}
    single = draw_plan(manifest, _config(data=data, steps_per_epoch=500), 0)
    assert single.members is None
    assert np.array_equal(single.wanted, single.condition)
    plan = draw_plan(manifest, _config(data=data, vector="multi_hot", steps_per_epoch=500), 0)
    assert _equal(plan, single)
    every, members = np.arange(len(plan.condition)), plan.wanted
    assert members.shape == (4000, 4)
    assert (members[every, plan.condition] == 1).all()
    sizes = np.bincount(members.sum(axis=1).astype(int), minlength=5) / len(every)
    np.testing.assert_allclose(sizes, [0, 0.5, 0.25, 0, 0.25], atol=0.032)  # 4 deviations
    pairs = members[members.sum(axis=1) == 2]
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    assert len(found) == 6
    np.testing.assert_allclose(counts / len(pairs), 1 / 6, atol=0.048)
    assert plan.target(0) == members[0].nonzero()[0].tolist()


def test_sets_are_of_the_targets_alone_and_by_default_never_all_sources() -> None:
    manifest = _manifest(1000)
    plan = draw_plan(manifest, _config(vector="multi_hot", steps_per_epoch=500), 0)
    sizes = np.bincount(plan.wanted.sum(axis=1).astype(int), minlength=5) / 4000
    np.testing.assert_allclose(sizes, [0, 4 / 7, 2 / 7, 1 / 7, 0], atol=0.032)
    plan = draw_plan(manifest, _config(vector="multi_hot", target_names=("bass", "vocals")), 0)
    assert set(map(tuple, plan.wanted)) == {(1, 0, 0, 0), (0, 0, 1, 0), (1, 0, 1, 0)}


@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0])
def test_songs_without_the_target_are_drawn_for_it_as_often_as_asked(weight: float) -> None:
    manifest = _manifest(*[1000] * 10, lacking=("bass", "other"))
    config = _config(data={"silent_target_weight": weight}, steps_per_epoch=500)
    plan = draw_plan(manifest, config, 0)
    plain = draw_plan(manifest, _config(steps_per_epoch=500), 0)
    assert _equal(plan, plain) == (weight == 1)
    for place in range(4):
        of_it = plan.condition == place
        odd = (plan.track[of_it, place] % 2).mean()
        wanted = weight / (1 + weight) if place > 1 else 0.5
        assert odd == pytest.approx(wanted, abs=0.064)  # of 1000: 4 deviations
        # What is heard beside a target is as in all songs, or mixtures would be fuller than they.
        assert np.array_equal(plan.track[~of_it, place], plain.track[~of_it, place])
    assert (plan.start + 128 <= 1000).all()


@pytest.mark.parametrize("weight", [0.25, 0.0])
def test_coverage_is_of_songs_that_have_the_target_and_a_share_of_the_others(weight: float) -> None:
    manifest = _manifest(*[1000] * 4, lacking=("bass",))
    data = {"draw": "coverage", "silent_target_weight": weight}
    plan = draw_plan(manifest, _config(data=data, steps_per_epoch=None, batch_size=4), 0)
    fewer = 16 + int(16 * weight)  # windows of 8 for each song
    assert np.bincount(plan.condition).tolist() == [32, 32, fewer, 32]
    for place in range(4):
        of_it = plan.condition == place
        reads = _reads(plan, place, of_it)
        assert min(counts.min() for counts in reads[::2]) == 1
        assert (sum(counts.sum() for counts in reads[1::2]) < 16 * 128) == (place == 2)


def test_a_target_that_no_song_has_is_refused_where_it_would_never_be_drawn() -> None:
    manifest, data = _manifest(100, 1000, lacking=("bass",)), {"silent_target_weight": 0.0}
    assert draw_plan(manifest, _config(), 0).steps == 50
    assert draw_plan(manifest, _config(data=data, target_names=("drums",)), 0).steps == 50
    with pytest.raises(ConfigError, match=r"silent_target_weight: got 0.0, but .* has bass; allow"):
        draw_plan(manifest, _config(data=data), 0)
