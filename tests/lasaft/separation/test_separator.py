"""Separation of whole songs: chunks, overlap-add, sample rates, channels and bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lasaft.audio import Samples
from lasaft.config import ModelConfig
from lasaft.errors import AudioError, ConfigError
from lasaft.network.model import LaSAFT
from lasaft.separation import separator
from lasaft.separation.chunks import ChunkGrid, chunk_frames, cut, overlap_add, wave_grid
from lasaft.separation.separator import (
    BuildEstimator,
    Estimator,
    Separator,
    frames_at_once,
    plain_estimator,
    separate_spectrogram,
)
from tests.helpers.audio import RATE, noise, tiny_config, tiny_model, tone
from tests.helpers.models import window_samples
from tests.helpers.parity import Fixture

CHUNK = 14208  # samples of a chunk of the tiny network: 128 * (191 - 2 * 40)


@pytest.fixture(scope="module")
def model() -> LaSAFT:
    return tiny_model()


def identity(_: LaSAFT, conditions: torch.Tensor) -> Estimator:
    """An estimator that gives the mixture itself for each condition."""
    return lambda spec: spec[:, None].expand(-1, len(conditions), -1, -1, -1)


# --- chunks alone -------------------------------------------------------------------------------


def whole_chunks(signal: torch.Tensor, grid: ChunkGrid, block: int) -> Iterator[Any]:
    for chunk in cut(signal.split(block, dim=-1), grid):
        yield chunk, chunk.window[..., grid.trim : grid.trim + grid.length]


@settings(max_examples=150, deadline=None)
@given(
    samples=st.integers(1, 300),
    length=st.integers(1, 60),
    trim=st.integers(1, 70),
    overlap=st.integers(0, 30),
    block=st.integers(1, 300),
)
def test_overlap_add_of_untouched_chunks_is_the_signal_to_the_bit(
    samples: int, length: int, trim: int, overlap: int, block: int
) -> None:
    grid = ChunkGrid(length, trim, length - min(overlap, length // 2))
    signal = torch.from_numpy(noise(2, samples, seed=samples))
    joined = torch.cat(list(overlap_add(whole_chunks(signal, grid, block), grid)), dim=-1)
    assert torch.equal(joined, signal)


@pytest.mark.parametrize("samples", [1, 59, 60, 61, 90, 91, 500])
def test_every_chunk_sees_its_place_of_the_signal_with_zeros_outside(samples: int) -> None:
    grid = ChunkGrid(60, 20, 30)
    signal = torch.arange(1.0, samples + 1)[None]
    padded = torch.nn.functional.pad(signal, (20, 200))
    chunks = list(cut(signal.split(7, dim=-1), grid))
    starts = grid.starts(samples)
    assert len(chunks) == len(starts)
    for chunk, start in zip(chunks, starts, strict=True):
        assert torch.equal(chunk.window, padded[:, start : start + grid.window])
    assert [chunk.first for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_chunks_are_those_of_the_reference_wherever_its_masks_sum_to_one() -> None:
    compared = 0
    for case in Fixture("chunks_masks").meta["settings"]:
        length, trim = case["true_samples"], case["trim_length"]
        grid = ChunkGrid(length, trim, length - int(length * case["overlap_ratio"]))
        assert grid.hop == case["chunk_hop"]
        assert grid.window == case["window_length"]
        starts = grid.starts(case["length"])
        theirs = [c["first_sample"] - c["zeros_before"] + trim for c in case["chunks"]]
        assert list(starts) == theirs
        if case["gain"] != [[0, 1.0]]:
            continue
        compared += 1
        ones = torch.ones(case["length"])
        for number, chunk in enumerate(case["chunks"]):
            alone = (
                (c, piece * (i == number))
                for i, (c, piece) in enumerate(whole_chunks(ones, grid, 50_000))
            )
            ours = torch.cat(list(overlap_add(alone, grid)))
            assert torch.equal(ours, _track_mask(chunk, trim, case["length"]))
    assert compared >= 4


def _track_mask(chunk: dict[str, Any], trim: int, samples: int) -> torch.Tensor:
    """The reference's mask of one chunk, laid on the track."""
    steps = [*chunk["mask"], [chunk["length"], 0.0]]
    mask = torch.zeros(chunk["length"])
    for (start, value), (stop, _) in pairwise(steps):
        mask[start:stop] = value
    start = chunk["first_sample"] - chunk["zeros_before"]
    laid = torch.zeros(samples + 2 * chunk["length"])
    laid[start + trim : start + chunk["length"]] = mask[trim:]
    return laid[:samples]


@pytest.mark.parametrize("ratio", [-0.1, 0.51, 1.0, float("nan")])
def test_an_overlap_ratio_out_of_range_is_rejected(model: LaSAFT, ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"overlap_ratio: got .*allowed: from 0 to 0\.5"):
        Separator(model, ratio)


def test_a_network_with_short_windows_separates_with_longer_ones() -> None:
    config = tiny_config(num_frame=16)
    frames = chunk_frames(config)
    assert frames % config.time_reduction == 0
    assert wave_grid(config, 0.5).length >= window_samples(config)
    assert chunk_frames(tiny_config()) == 192
    stems = Separator(tiny_model(num_frame=16)).separate(noise(2, 3000), RATE)
    assert stems["bass"].shape == (2, 3000)


def test_windows_are_longer_than_the_stft_needs() -> None:
    config = ModelConfig(n_fft=65536, hop_length=4096, num_frame=8, n_blocks=3)
    assert (chunk_frames(config) - 1) * config.hop_length > config.n_fft // 2


# --- the reference's outputs --------------------------------------------------------------------


@pytest.mark.parametrize("build", [None, plain_estimator], ids=["fast", "plain"])
@pytest.mark.parametrize(
    ("run", "target", "ratio", "batch"),
    [("vocals_ov0.5", "vocals", 0.5, 1), ("other_ov0", "other", 0.0, 3)],
)
def test_a_whole_track_equals_the_reference(
    run: str, target: str, ratio: float, batch: int, build: BuildEstimator | None
) -> None:
    fixture = Fixture("track_gpocm_lasaft")
    mixture = fixture["mixture_int16"].T.float() / 32768
    separator = Separator(fixture.model(), ratio, batch, build_estimator=build)
    ours = separator.separate(mixture, RATE, [target])[target]
    # With overlap 0 the reference returns whole chunks: what lies behind the track is padding.
    theirs = fixture[f"raw/{run}"].T[:, : mixture.shape[1]]
    assert ours.shape == mixture.shape
    # Full scale is 1 and the float32 network itself is good to 1e-6.
    assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("block", ["tfc", "tfc_tdf", "tfc_lightsaft", "tfc_rnn", "tdf", "tdc"])
def test_the_fast_form_separates_as_the_plain_network(block: str) -> None:
    model = tiny_model(block=block, condition_to="full")
    audio = noise(2, 20_000)
    fast = Separator(model).separate(audio, RATE)
    for name, stem in (
        Separator(model, build_estimator=plain_estimator).separate(audio, RATE).items()
    ):
        # What specialising promises: 2e-5 of the scale.
        assert (fast[name] - stem).abs().max() < 2e-5 * stem.abs().max()


@pytest.mark.parametrize("build", [None, plain_estimator], ids=["fast", "plain"])
def test_bf16_stays_close_to_float32(build: BuildEstimator | None) -> None:
    fixture = Fixture("track_gpocm_lasaft")
    mixture = fixture["mixture_int16"].T.float() / 32768
    model = fixture.model()
    exact = Separator(model).separate(mixture, RATE, ["vocals"])["vocals"]
    separator = Separator(model, precision="bf16", build_estimator=build)
    rough = separator.separate(mixture, RATE, ["vocals"])["vocals"]
    assert rough.dtype == torch.float32
    snr = 10 * torch.log10((exact**2).sum() / ((rough - exact) ** 2).sum())
    assert 20 < snr < 60  # 8 bits of mantissa: not exact, and not noise


# --- lengths, rates, channels -------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2, 127, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5])
def test_an_identity_estimator_gives_the_song_back(
    model: LaSAFT, samples: int, ratio: float
) -> None:
    audio = noise(2, samples)
    stems = Separator(model, ratio, build_estimator=identity).separate(audio, RATE)
    assert list(stems) == ["vocals", "drums", "bass", "other"]
    for stem in stems.values():
        # STFT and back in float32.
        assert torch.allclose(stem, torch.from_numpy(audio), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8000, 22050, 48000, 96000])
@pytest.mark.parametrize("samples", [1, 2, 777, 20_001])
def test_any_sample_rate_gives_estimates_as_long_as_the_song(
    model: LaSAFT, rate: int, samples: int
) -> None:
    separator = Separator(model, build_estimator=identity)
    stems = separator.separate(noise(2, samples), rate, ["drums"])
    assert stems["drums"].shape == (2, samples)
    assert torch.isfinite(stems["drums"]).all()


def test_another_sample_rate_keeps_a_tone_in_its_place(model: LaSAFT) -> None:
    audio = tone(1000, 0.6, rate=48000)
    stem = Separator(model, build_estimator=identity).separate(audio, 48000)["bass"].numpy()
    inner = slice(3000, -3000)  # the resampling filters ring at the ends
    assert np.abs(stem[:, inner] - audio[:, inner]).max() < 1e-4


def test_a_mono_song_is_two_equal_channels_and_mono_again(model: LaSAFT) -> None:
    mono = noise(1, 20_000)
    separator = Separator(model)
    stem = separator.separate(mono, RATE, ["vocals"])["vocals"]
    stereo = separator.separate(np.concatenate((mono, mono)), RATE, ["vocals"])["vocals"]
    assert stem.shape == (1, 20_000)
    assert torch.allclose(stem, stereo.mean(dim=0, keepdim=True), atol=1e-7)
    assert torch.equal(separator.separate(mono[0], RATE, ["vocals"])["vocals"], stem)


@pytest.mark.parametrize("spec_type", ["complex", "magnitude"])
def test_a_mono_network_separates_each_channel_by_itself(spec_type: str) -> None:
    mono = tiny_model(spec_type=spec_type, input_channels=2 if spec_type == "complex" else 1)
    audio = noise(3, 20_000)
    separator = Separator(mono, batch_size=2)
    together = separator.separate(audio, RATE)
    for channel in range(3):
        alone = separator.separate(audio[channel], RATE)
        for name, stem in alone.items():
            assert torch.allclose(together[name][channel], stem[0], atol=1e-6)


def test_all_sources_at_once_equal_one_by_one_in_any_order(model: LaSAFT) -> None:
    audio = noise(2, 20_000)
    separator = Separator(model, batch_size=3)
    together = separator.separate(audio, RATE)
    some = separator.separate(audio, RATE, ["other", "vocals", "other"])
    assert list(some) == ["other", "vocals"]
    for name, stem in some.items():
        assert torch.allclose(stem, together[name], atol=1e-6)
    assert not torch.allclose(together["other"], together["vocals"], atol=1e-3)


def test_a_set_is_one_condition_or_the_sum_of_its_sources(model: LaSAFT) -> None:
    audio, names = noise(2, 20_000), ["bass+vocals", "drums", "vocals"]
    found = Separator(model).separate(audio, RATE, names)
    assert list(found) == names
    alone = Separator(model).separate(audio, RATE)
    assert torch.allclose(found["bass+vocals"], alone["bass"] + alone["vocals"], atol=1e-6)
    assert torch.allclose(found["drums"], alone["drums"], atol=1e-6)
    sets, asked = tiny_model(control_vector_type="multi_hot"), []

    def build(model: LaSAFT, conditions: Tensor) -> Estimator:
        asked.append(conditions)
        return plain_estimator(model, conditions)

    plain = Separator(sets, build_estimator=build).separate(audio, RATE, names)
    assert [each.tolist() for each in asked] == [[[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]]
    for name, stem in Separator(sets).separate(audio, RATE, names).items():
        assert torch.allclose(stem, plain[name], atol=1e-5)
    assert not torch.allclose(plain["bass+vocals"], found["bass+vocals"], atol=1e-2)


@pytest.mark.parametrize("mode", ["mapping", "masking"])
@pytest.mark.parametrize("spec_type", ["complex", "magnitude"])
def test_silence_separates_into_finite_values(spec_type: str, mode: str) -> None:
    silent = tiny_model(spec_type=spec_type, spec_est_mode=mode)
    stems = Separator(silent).separate(np.zeros((2, 5000), np.float32), RATE)
    for stem in stems.values():
        assert torch.isfinite(stem).all()
        if mode == "masking":
            assert stem.abs().max() == 0


def test_loud_estimates_are_not_clipped(model: LaSAFT) -> None:
    audio = 8 * tone(440, 0.2)
    stem = Separator(model, build_estimator=identity).separate(audio, RATE)["vocals"]
    assert stem.abs().max() > 3.9


def test_progress_adds_up_to_the_song(model: LaSAFT) -> None:
    counts: list[int] = []
    Separator(model, build_estimator=identity).separate(
        noise(2, 50_000), 48000, ["bass"], counts.append
    )
    assert sum(counts) == 50_000
    assert len(counts) > 2


# --- streams ------------------------------------------------------------------------------------


def test_a_stream_does_not_depend_on_its_blocks(model: LaSAFT) -> None:
    audio = noise(2, 30_000)
    separator = Separator(model, build_estimator=identity)
    results = []
    for size in (700, 30_000):
        blocks = np.split(audio, range(size, 30_000, size), axis=1)
        results.append(np.concatenate(list(separator.stream(blocks, 48000)), axis=2))
    assert results[0].shape == (4, 2, 30_000)
    assert np.array_equal(results[0], results[1])


def test_a_stream_holds_no_more_after_minutes_than_after_seconds(model: LaSAFT) -> None:
    separator = Separator(model, build_estimator=identity)
    process = psutil.Process()
    block = noise(2, RATE)
    given = done = most_behind = 0
    warm = 0

    def seconds(count: int) -> Iterator[Samples]:
        nonlocal given
        for _ in range(count):
            given += RATE
            yield block

    for piece in separator.stream(seconds(150), RATE, ["vocals", "drums"]):
        done += piece.shape[-1]
        most_behind = max(most_behind, given - done)
        if not warm and done > 20 * RATE:
            warm = process.memory_info().rss
    assert done == given == 150 * RATE
    assert most_behind < CHUNK + 2 * 5120 + 2 * RATE  # a window and two blocks
    # The 130 s since then are 138 MB of mixture and estimates.
    assert process.memory_info().rss - warm < 40e6


def test_a_stream_gives_results_long_before_it_ends(model: LaSAFT) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Samples]:
        while True:
            taken.append(1)
            yield noise(2, 4410)

    first = next(Separator(model).stream(endless(), RATE))
    assert first.shape[:2] == (4, 2)
    assert len(taken) <= 10


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros((2, 0), np.float32), "holds no audio"),
        (np.zeros((2, 100), np.int16), r"holds int16 values, allowed: floats"),
        (np.zeros((30_000, 2), np.float32), r"shape \(30000, 2\), allowed: \[channel, sample\]"),
        (np.zeros((2, 2, 100), np.float32), r"shape \(2, 2, 100\)"),
        (np.zeros((6, 100), np.float32), "has 6 channels, allowed: 1 or 2"),
        (np.full((2, 100), np.nan, np.float32), r"not a finite number .* at sample 0"),
        (np.full((2, 100), 1e300), "not a finite number"),
    ],
)
def test_a_waveform_that_cannot_be_used_is_rejected(
    model: LaSAFT, waveform: np.ndarray, message: str
) -> None:
    with pytest.raises(AudioError, match=message):
        Separator(model).separate(waveform, RATE)


def test_a_stream_without_samples_or_with_changing_channels_is_rejected(model: LaSAFT) -> None:
    separator = Separator(model)
    with pytest.raises(AudioError, match=r"song\.wav: holds no audio"):
        list(separator.stream([], RATE, name="song.wav"))
    with pytest.raises(AudioError, match=r"song\.wav: goes from 2 to 1 channels"):
        list(separator.stream([noise(2, 9), noise(1, 9)], RATE, name="song.wav"))


@pytest.mark.parametrize("rate", [0, -44100, 999, 10**7])
def test_an_impossible_sample_rate_is_rejected(model: LaSAFT, rate: int) -> None:
    with pytest.raises(AudioError, match=f"sample rate of {rate} Hz, allowed: from 1000"):
        Separator(model).separate(noise(2, 10), rate)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["vocals+vocals"], "targets: got vocals"),
        (["guitar"], "targets: got guitar, allowed: vocals, drums, bass, other"),
        ([], "is empty"),
    ],
)
def test_unknown_targets_are_rejected(model: LaSAFT, targets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Separator(model).separate(noise(2, 10), RATE, targets)


@pytest.mark.parametrize("shifts", [2, 3])
def test_shifts_are_the_mean_of_passes_whose_chunks_begin_elsewhere(
    model: LaSAFT, shifts: int
) -> None:
    audio, plain = noise(2, 50_001), Separator(model)
    hop = wave_grid(model.config, 0.5).hop
    passes = []
    for number in range(shifts):
        later = number * hop // shifts
        padded = np.pad(audio, ((0, 0), (later, 0)))
        passes.append(plain.separate(padded, RATE, "bass")["bass"][:, later:])
    found = Separator(model, shifts=shifts).separate(audio, RATE, "bass")["bass"]
    assert found.shape == audio.shape
    assert torch.allclose(found, torch.stack(passes).mean(dim=0), atol=1e-6)
    assert not torch.allclose(found, passes[0], atol=1e-5)


def test_where_memory_lacks_the_batch_is_halved_and_the_result_is_the_same(model: LaSAFT) -> None:
    sizes = []

    def build(model: LaSAFT, conditions: Tensor) -> Estimator:
        estimate = plain_estimator(model, conditions)

        def limited(spec: Tensor) -> Tensor:
            sizes.append(len(spec))
            if len(spec) > 3:
                raise torch.OutOfMemoryError("no room")
            return estimate(spec)

        return limited

    audio = noise(2, 200_000)
    wanted = Separator(model, batch_size=2, build_estimator=plain_estimator).separate(audio, RATE)
    found = Separator(model, batch_size=8, build_estimator=build).separate(audio, RATE)
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[3:]) == 2
    for name, stem in wanted.items():
        assert torch.equal(found[name], stem)


def test_one_chunk_that_does_not_fit_is_an_error(model: LaSAFT) -> None:
    def build(model: LaSAFT, conditions: Tensor) -> Estimator:
        def refuse(spec: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("no room")

        return refuse

    with pytest.raises(torch.OutOfMemoryError):
        Separator(model, batch_size=4, build_estimator=build).separate(noise(2, 9000), RATE)


def test_one_target_may_be_given_by_its_name(model: LaSAFT) -> None:
    assert list(Separator(model).separate(noise(2, 10), RATE, targets="vocals")) == ["vocals"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"shifts": 0}, "shifts: got 0"),
        ({"precision": "16"}, "precision: got '16'"),
    ],
)
def test_settings_out_of_range_are_rejected(
    model: LaSAFT, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Separator(model, **options)


# --- spectrograms -------------------------------------------------------------------------------


@pytest.mark.parametrize("spec_type", ["complex", "magnitude"])
@pytest.mark.parametrize("frames", [1, 100, 112, 113, 300])
def test_a_spectrogram_is_separated_in_windows_with_zeros_outside(
    spec_type: str, frames: int
) -> None:
    model = tiny_model(spec_type=spec_type).train()
    spec = torch.from_numpy(noise(4 * frames, 129).reshape(4, frames, 129))
    result = separate_spectrogram(model, spec, ["drums", "bass"])
    assert result.shape == (2, 4, frames, 129)
    assert model.training
    trim, inner = 40, 192 - 80
    padded = torch.nn.functional.pad(spec, (0, 0, trim, 300))
    model.eval()
    with torch.no_grad():
        for start in range(0, frames, inner):
            window = padded[None, :, start : start + 192]
            bass = model.to_spectrogram(model.estimate(window, torch.tensor([2])), window)[0]
            wanted = bass[:, trim : trim + min(inner, frames - start)]
            ours = result[1, :, start : start + inner]
            # Two conditions in one batch against one: the sums may be in another order.
            assert torch.allclose(ours, wanted, atol=1e-5)


def test_a_gpu_takes_as_many_windows_as_fit_and_that_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, gpu = ModelConfig(), torch.device("cuda")
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * 10**9, 80 * 10**9))
    assert frames_at_once(config, gpu) == 4096
    assert frames_at_once(config, torch.device("cpu")) == 256
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**9, 80 * 10**9))
    assert 256 < frames_at_once(config, gpu) < 1100
    model = tiny_model()
    spec = torch.from_numpy(noise(4 * 900, 129).reshape(4, 900, 129))
    few = separate_spectrogram(model, spec)
    monkeypatch.setattr(separator, "frames_at_once", lambda config, device: 4096)
    torch.testing.assert_close(separate_spectrogram(model, spec), few, atol=1e-5, rtol=1e-5)
