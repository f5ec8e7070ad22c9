"""The streamed STFT is torch's STFT of the whole track, whatever the blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lasaft.errors import DataError
from pipeline.data.shards.framing import parts_of, spectrogram_batches
from pipeline.data.shards.manifest import ShardSettings


def _settings(
    n_fft: int, hop: int, channels: int = 2, max_frames_per_shard: int = 65536, phases: int = 1
) -> ShardSettings:
    return ShardSettings(
        sources=("a",),
        channels=channels,
        sample_rate=44100,
        n_fft=n_fft,
        hop_length=hop,
        max_frames_per_shard=max_frames_per_shard,
        phases=phases,
    )


def _audio(samples: int, channels: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(samples)
    return torch.rand(2, channels, samples, generator=generator) - 0.5


def _whole(audio: torch.Tensor, n_fft: int, hop: int) -> torch.Tensor:
    """Return torch's own [column, frame, 2 * channels, bins] in float16."""
    flat = audio.reshape(-1, audio.shape[-1])
    window = torch.hann_window(n_fft)
    spec = torch.stft(flat, n_fft, hop, window=window, center=True, return_complex=True)
    spec = spec.unflatten(0, audio.shape[:2]).permute(0, 3, 1, 2)
    return torch.cat([spec.real, spec.imag], dim=2).half()


@given(
    samples=st.integers(33, 40_000),
    block=st.integers(1, 20_000),
    shape=st.sampled_from([(64, 16), (64, 32), (64, 48), (64, 64), (64, 100)]),
    channels=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_frames_equal_torch_for_any_length_and_blocks(
    samples: int, block: int, shape: tuple[int, int], channels: int
) -> None:
    n_fft, hop = shape
    audio = _audio(samples, channels)
    blocks = audio.split(max(block, samples // 50), dim=-1)
    batches = list(spectrogram_batches(blocks, _settings(n_fft, hop, channels)))
    assert all(batch.shape[1] == 256 for batch in batches[:-1])
    assert 0 < batches[-1].shape[1] <= 256
    frames = torch.cat(batches, dim=1)
    truth = _whole(audio, n_fft, hop)
    assert frames.shape == truth.shape
    # The FFT may run in other groups: one float16 step (2^-10 of the value) at a rounding edge.
    torch.testing.assert_close(frames.float(), truth.float(), rtol=2**-10, atol=1e-5)


@given(
    samples=st.integers(33, 40_000),
    block=st.integers(500, 20_000),
    shape=st.sampled_from([(64, 16), (64, 32), (64, 48), (64, 64), (64, 100)]),
    phases=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_parts_together_are_the_whole_bit_for_bit(
    samples: int, block: int, shape: tuple[int, int], phases: int
) -> None:
    samples += 2 * 100 // 3 * (phases > 1)
    wanted = _settings(*shape, max_frames_per_shard=256, phases=phases)
    audio = _audio(samples)
    whole = torch.cat(list(spectrogram_batches([audio], wanted)), dim=1)
    parts = parts_of(samples, wanted)
    made = []
    for part in parts:
        blocks = audio[..., part.start : part.stop].split(block, dim=-1)
        frames = torch.cat(list(spectrogram_batches(blocks, wanted, part)), dim=1)
        assert frames.shape[1] == part.frames
        made.append(frames)
    assert torch.equal(torch.cat(made, dim=1), whole)


@pytest.mark.parametrize(("samples", "hop", "phases"), [(70, 32, 4), (9000, 32, 3), (9017, 20, 2)])
def test_the_frames_of_further_grids_are_those_of_later_samples(
    samples: int, hop: int, phases: int
) -> None:
    audio, wanted = _audio(samples), _settings(64, hop, phases=phases)
    assert wanted.columns == ("a", "mixture", "a@1", "a@2", "a@3")[: phases + 1]
    made = torch.cat(list(spectrogram_batches(audio.split(1000, dim=-1), wanted)), dim=1)
    first = torch.cat(list(spectrogram_batches([audio], _settings(64, hop))), dim=1)
    assert torch.equal(made[:2], first)
    for grid in range(1, phases):
        shift = grid * hop // phases
        mirrored = audio[:1, :, -33 - shift : -1].flip(-1)
        around = torch.cat([audio[:1, :, 1:33].flip(-1), audio[:1], mirrored], -1)[..., shift:]
        flat, window = around.flatten(0, 1), torch.hann_window(64)
        spec = torch.stft(flat, 64, hop, window=window, center=False, return_complex=True)
        truth = torch.cat([spec.real, spec.imag]).permute(2, 0, 1)[: made.shape[1]].half()
        assert truth.shape == made[1 + grid].shape
        torch.testing.assert_close(made[1 + grid].float(), truth.float(), rtol=2**-10, atol=1e-5)


def test_blocks_do_not_change_a_bit() -> None:
    audio, wanted = _audio(300_000), _settings(512, 256)
    whole = torch.cat(list(spectrogram_batches([audio], wanted)), dim=1)
    pieces = torch.cat(list(spectrogram_batches(audio.split(9999, dim=-1), wanted)), dim=1)
    assert torch.equal(whole, pieces)


@pytest.mark.parametrize("samples", [0, 1, 256])
def test_a_track_shorter_than_half_a_window_is_refused(samples: int) -> None:
    blocks = [_audio(samples)] if samples else []
    with pytest.raises(DataError, match=f"has {samples} samples; allowed: more than n_fft / 2"):
        list(spectrogram_batches(blocks, _settings(512, 256)))
