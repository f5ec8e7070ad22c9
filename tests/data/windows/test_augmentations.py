"""Each augmentation of spectrograms equals the STFT of the same operation on the waveforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.shards.manifest import Manifest
from pipeline.data.songs.tracks import list_tracks, read_track
from pipeline.data.songs.wanted import Wanted
from pipeline.data.windows.draw_plan import DrawPlan, draw_plan
from pipeline.data.windows.loader import BatchLoader
from pipeline.data.windows.reader import ShardSet
from tests.helpers.shards import make_shards, small_config
from tests.helpers.wavs import write_track

_SETTINGS = {
    "remix": {"remix_probability": 0.5},
    "gain": {"gain_probability": 1.0, "gain_db": 12.0},
    "polarity": {"polarity_probability": 0.5},
    "channel swap": {"channel_swap_probability": 0.5},
    "mixup": {"mixup_probability": 1.0, "mixup_share": 1.0},
    "all": {
        "remix_probability": 0.5,
        "gain_probability": 0.5,
        "polarity_probability": 0.5,
        "channel_swap_probability": 0.5,
        "mixup_probability": 0.5,
    },
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = tmp_path_factory.mktemp("augmentations")
    for name in "abc":
        write_track(root / "songs" / "train" / name, seconds=1.0)
    config = small_config(root / "songs", root / "run")
    make_shards(config)
    return config


def _wave(config: RunConfig, plan: DrawPlan, waves: list[torch.Tensor], sample: int) -> np.ndarray:
    """Return the sources [source, channel, sample] of a sample: cut, blended, swapped, scaled."""
    hop = config.model.hop_length
    span = (config.model.num_frame - 1) * hop
    found = []
    for place in range(4):
        pieces = [
            waves[number][place, :, start * hop : start * hop + span].numpy()
            for number, start in plan.windows(sample, place)
        ]
        share = plan.share[sample, place]
        wave = pieces[0] if len(pieces) == 1 else (1 - share) * pieces[0] + share * pieces[1]
        wave = wave[::-1] if plan.swap[sample, place] else wave
        found.append(wave * plan.gain[sample, place])
    return np.stack(found)


@pytest.mark.parametrize("name", _SETTINGS)
def test_an_augmentation_is_the_stft_of_the_same_operation_on_waves(
    config: RunConfig, name: str
) -> None:
    data = config.data.model_copy(update=_SETTINGS[name])
    config = config.model_copy(update={"data": data})
    shards = ShardSet(RunFolder.of(config).root / "shards")
    manifest: Manifest = shards.manifest
    tracks = list_tracks(RunFolder.of(config).songs, Wanted(config.model.sources))
    waves = [read_track(track).sources for track in tracks]
    plan = draw_plan(manifest, config, 0)
    n_fft, hop = config.model.n_fft, config.model.hop_length
    window = torch.hann_window(n_fft)
    with BatchLoader(shards, plan) as loader:
        for step, batch in enumerate(loader):
            for row, sample in enumerate(plan.samples(step, 0, 1)):
                sources = torch.from_numpy(_wave(config, plan, waves, sample).copy())
                for wave, spec in (
                    (sources.sum(0), batch.mixture[row]),
                    (sources[plan.condition[sample]], batch.target[row]),
                ):
                    truth = torch.stft(wave, n_fft, hop, window=window, return_complex=True)
                    truth = torch.cat([truth.real, truth.imag]).transpose(1, 2)
                    # The first and last frame of the wave's own STFT are mirrored at its ends.
                    error = (truth - spec)[:, 1:-1].square().mean()
                    ratio = truth[:, 1:-1].square().mean() / error
                    assert 10 * torch.log10(ratio) > 70, "float16 keeps 76 dB"


def test_every_augmentation_happens_in_these_plans(config: RunConfig) -> None:
    data = config.data.model_copy(update=_SETTINGS["all"])
    plan = draw_plan(
        ShardSet(RunFolder.of(config).root / "shards").manifest,
        config.model_copy(update={"data": data}),
        0,
    )
    for happens in (plan.gain != 1, plan.gain < 0, plan.swap, plan.share > 0):
        assert 0 < happens.sum() < happens.size


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_have_the_same_augmented_batches(config: RunConfig, world_size: int) -> None:
    data = config.data.model_copy(update=_SETTINGS["all"])
    config = config.model_copy(update={"data": data})
    shards = ShardSet(RunFolder.of(config).root / "shards")
    plan = draw_plan(shards.manifest, config, 1)

    def batches(rank: int, count: int) -> list[torch.Tensor]:
        with BatchLoader(shards, plan, rank=rank, world_size=count, threads=2) as loader:
            return [batch.mixture.clone() for batch in loader]

    parts = [batches(rank, world_size) for rank in range(world_size)]
    for step, whole in enumerate(batches(0, 1)):
        assert torch.equal(whole, torch.cat([part[step] for part in parts]))
