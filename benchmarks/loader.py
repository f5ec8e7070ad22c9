"""Reading training windows: the reference's way, a plain memcpy and ours, side by side.

Run: OMP_NUM_THREADS=1 python -m benchmarks.loader [--seconds 60] [--tracks 6] [--turns 6]
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from lasaft.config import ModelConfig
from lasaft.network.spectrogram import Spectrogram
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data.shards.build import Work, build_shards
from pipeline.data.shards.manifest import ShardSettings, track_entry, write_manifest
from pipeline.data.songs.tracks import list_tracks
from pipeline.data.windows.draw_plan import draw_plan
from pipeline.data.windows.loader import BatchLoader
from pipeline.data.windows.reader import ShardSet

BATCH = 8
WINDOWS = 160  # a turn
EPOCH = 640  # long enough that the making of the ring's buffers does not count
SOURCES = ("vocals", "drums", "bass", "other")


@dataclass
class Row:
    """One way of reading: CPU milliseconds and wall milliseconds a window of four sources.

    Args:
        name: what is read, and how.
        run: reads windows for the given turn and returns how many.
    """

    name: str
    run: Callable[[int], int]
    cpu_ms: float = math.inf
    wall_ms: float = math.inf

    def measure(self, turn: int) -> None:
        """Run once; the best turn counts, because other work on the machine only adds time."""
        cpu, wall = time.process_time(), time.perf_counter()
        count = self.run(turn)
        cpu_ms = (time.process_time() - cpu) * 1000 / count
        if cpu_ms < self.cpu_ms:
            self.cpu_ms, self.wall_ms = cpu_ms, (time.perf_counter() - wall) * 1000 / count


def windows(name: str, window: Callable[[int], None]) -> Row:
    """Return the row of a function that reads one window."""

    def run(turn: int) -> int:
        for index in range(WINDOWS):
            window(index)
        return WINDOWS

    return Row(name, run)


def loader(name: str, shards: ShardSet, config: RunConfig, threads: int) -> Row:
    """Return the row of whole epochs through the loader's threads, as training sees them."""

    def run(turn: int) -> int:
        plan = draw_plan(shards.manifest, config, turn)
        with BatchLoader(shards, plan, threads=threads) as batches:
            return sum(len(batch.condition) for batch in batches)

    return Row(name, run)


def first_touch(name: str, shards: ShardSet, config: RunConfig) -> Row:
    """Return the row of an epoch in which every record batch is read for the first time."""

    def run(turn: int) -> int:
        fresh = ShardSet(shards.folder, shards.manifest)
        return loader(name, fresh, config, 1).run(turn)

    return Row(name, run)


def write_noise(root: Path, tracks: int, seconds: float) -> None:
    random = np.random.default_rng(0)
    for number in range(tracks):
        folder = root / "train" / str(number)
        folder.mkdir(parents=True)
        for stem in (*SOURCES, "mixture"):
            audio = random.integers(-9000, 9000, (int(seconds * 44100), 2), dtype=np.int16)
            soundfile.write(str(folder / f"{stem}.wav"), audio, 44100, subtype="PCM_16")


def make_shards(config: RunConfig, folder: Path) -> tuple[ShardSet, float]:
    """Build the shards in this process; return them and the speed in s of audio a CPU second."""
    settings = ShardSettings.of(config)
    assert config.data.musdb_root is not None
    tracks = list_tracks(config.data.musdb_root, sources=SOURCES)
    start = time.process_time()
    outcomes = [build_shards(Work(track, settings, folder)) for track in tracks]
    cpu = time.process_time() - start
    found = [track_entry(outcome.records) for outcome in outcomes if outcome.records]
    manifest = write_manifest(folder, found, settings)
    return ShardSet(folder, manifest), sum(e.samples for e in found) / 44100 / cpu


def reference_window(songs: Path, shards: ShardSet, config: RunConfig) -> Callable[[int], None]:
    """Four random reads by soundfile, their sum, and the STFT of mixture and target."""
    spectrogram = Spectrogram(config.model.n_fft, config.model.hop_length)
    plan = draw_plan(shards.manifest, config, 0)
    samples = config.model.hop_length * (config.model.num_frame - 1)

    def window(index: int) -> None:
        audio = []
        for place, source in enumerate(SOURCES):
            track = plan.tracks[plan.track[index, place]]
            start = int(plan.start[index, place]) * config.model.hop_length
            start = min(start, track.samples - samples)
            path = str(songs / "train" / track.name / f"{source}.wav")
            data, _ = soundfile.read(path, samples, start, dtype="float32", always_2d=True)
            audio.append(data.T)
        target = audio[int(plan.condition[index])]
        both = torch.from_numpy(np.stack([np.sum(audio, axis=0), target]))
        spectrogram.stft(both)

    return window


def raw_window(
    shards: ShardSet, config: RunConfig, *, channels_first: bool
) -> Callable[[int], None]:
    plan = draw_plan(shards.manifest, config, 0)
    out = _windows(shards, config)
    read = shards.read_window if channels_first else shards.read_rows
    out = out if channels_first else out.transpose(1, 2).contiguous()

    def window(index: int) -> None:
        for place, source in enumerate(SOURCES):
            track = plan.tracks[plan.track[index, place]]
            read(track, source, int(plan.start[index, place]), out[place])

    return window


def memcpy_window(shards: ShardSet, config: RunConfig) -> Callable[[int], None]:
    """Copy as many bytes, from as many places, without looking anything up."""
    out = _windows(shards, config)
    pool = torch.zeros(64, *out.shape, dtype=torch.float16)

    def window(index: int) -> None:
        for place in range(len(SOURCES)):
            out[place].copy_(pool[(index * 7 + place) % 64, place])

    return window


def _windows(shards: ShardSet, config: RunConfig) -> Tensor:
    rows, bins = shards.manifest.settings.row_shape
    return torch.zeros(len(SOURCES), rows, config.model.num_frame, bins, dtype=torch.float16)


def print_table(rows: list[Row], speed: float, n_fft: int) -> None:
    reference = rows[0]
    print(f"\nn_fft {n_fft}, windows of 4 independent sources, 128 frames; page cache warm\n")
    print(f"{'way':44s} {'CPU ms':>8s} {'wall ms':>8s} {'windows/s':>10s} {'x reference':>12s}")
    for row in rows:
        times = reference.cpu_ms / row.cpu_ms
        print(
            f"{row.name:44s} {row.cpu_ms:8.2f} {row.wall_ms:8.2f} {1000 / row.wall_ms:10.0f} "
            f"{times:11.1f}x"
        )
    memcpy, raw, turned, whole, _, first = (row.cpu_ms for row in rows[1:])
    print("\nratios of CPU time")
    print(f"  raw windows against the reference    {reference.cpu_ms / raw:5.1f}x  (wanted: 12)")
    print(f"  float32 mixture + target against it  {reference.cpu_ms / whole:5.1f}x  (wanted: 5)")
    print(f"  raw windows to a memcpy              {raw / memcpy:5.2f}   (wanted: at most 1.5)")
    print(f"  the same, [channel, frame, bin]      {turned / memcpy:5.2f}")
    print(f"  a first touch, with its crc32        {first / whole:5.2f}   of later ones")
    print(f"\npreprocess, decode to written shard: {speed:.0f} s of audio a CPU second\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a track")
    parser.add_argument("--tracks", type=int, default=6, help="number of tracks")
    parser.add_argument("--n_fft", type=int, default=2048, help="STFT size; the hop is half of it")
    parser.add_argument("--turns", type=int, default=6, help="how often each way is measured")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_noise(root / "songs", asked.tracks, asked.seconds)
        config = RunConfig(
            model=ModelConfig(n_fft=asked.n_fft, hop_length=asked.n_fft // 2),
            data=DataConfig(musdb_root=root / "songs"),
            train=TrainConfig(batch_size=BATCH, steps_per_epoch=EPOCH // BATCH),
        )
        shards, speed = make_shards(config, root / "shards")
        rows = [
            windows(
                "reference: 4 soundfile reads + STFT",
                reference_window(root / "songs", shards, config),
            ),
            windows("memcpy of the same float16 bytes", memcpy_window(shards, config)),
            windows(
                "ours, raw float16 [frame, channel, bin]",
                raw_window(shards, config, channels_first=False),
            ),
            windows(
                "ours, raw float16 [channel, frame, bin]",
                raw_window(shards, config, channels_first=True),
            ),
            loader("ours, float32 mixture + target, 1 thread", shards, config, 1),
            loader("ours, float32 mixture + target, 2 threads", shards, config, 2),
            first_touch("ours, the same at first touch, 1 thread", shards, config),
        ]
        for turn in range(asked.turns):
            for row in rows:  # in turns, so that other work on the machine hits all alike
                row.measure(turn)
        print_table(rows, speed, asked.n_fft)


if __name__ == "__main__":
    main()
