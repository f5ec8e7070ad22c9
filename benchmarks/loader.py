"""Reading training windows: the reference's way, torch's DataLoader, a memcpy and ours.

    OMP_NUM_THREADS=1 python -m benchmarks.loader [--seconds 60] [--tracks 6] [--turns 6]

A window is of four independent sources and 128 frames; the page cache is warm. "First touch" is
what a first epoch does with such files: it takes checksums, later epochs do not. CPU time is that
of all threads and of the DataLoader's workers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader

from benchmarks.measure import Figures, Table, best_of, timed
from lasaft.config import ModelConfig
from lasaft.network.spectrogram import Spectrogram
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.config.folders import RunFolder
from pipeline.data.windows.draw_plan import draw_plan
from pipeline.data.windows.loader import BatchLoader
from pipeline.data.windows.reader import ShardSet
from tests.helpers.shards import make_shards
from tests.helpers.wavs import write_track

BATCH = 8
WINDOWS = 160  # a turn
EPOCH = 640  # windows; long enough that the making of the ring's buffers does not count


class Ways:
    """The ways of reading windows of ``config``; each reads WINDOWS of them, or an epoch."""

    def __init__(self, config: RunConfig, shards: ShardSet) -> None:
        self.config, self.shards = config, shards
        self.plan = draw_plan(shards.manifest, config, 0)
        self.sources = config.model.sources
        self.spectrogram = Spectrogram(config.model.n_fft, config.model.hop_length)
        rows, bins = shards.manifest.settings.row_shape
        # [source, channel, frame, bin]
        shape = (len(self.sources), rows, config.model.num_frame, bins)
        self.out = torch.zeros(shape, dtype=torch.float16)
        self.pool = torch.zeros(64, *shape, dtype=torch.float16)

    def __len__(self) -> int:
        return WINDOWS

    def __getitem__(self, index: int) -> torch.Tensor:
        """Four random reads by soundfile, their sum, and the STFT of mixture and target."""
        model, songs = self.config.model, RunFolder.of(self.config).songs
        samples, audio = model.hop_length * (model.num_frame - 1), []
        for place, source in enumerate(self.sources):
            track = self.plan.tracks[self.plan.track[index, place]]
            start = int(self.plan.start[index, place]) * model.hop_length
            file = songs / "train" / track.name / f"{source}.wav"
            start = min(start, track.samples - samples)
            data, _ = soundfile.read(file, samples, start, dtype="float32", always_2d=True)
            audio.append(data.T)
        target = audio[int(self.plan.condition[index])]
        mixed = torch.from_numpy(np.stack([np.sum(audio, axis=0), target]))
        return self.spectrogram.stft(mixed)

    def reference(self) -> None:
        """Read one window after another."""
        for index in range(WINDOWS):
            self[index]

    def dataloader(self, workers: int) -> None:
        """Read them in torch's DataLoader, whose processes do the STFT too."""
        batches = DataLoader(self, BATCH, num_workers=workers)  # type: ignore[arg-type]
        assert sum(len(batch) for batch in batches) == WINDOWS

    def memcpy(self) -> None:
        """Copy as many bytes, from as many places, without looking anything up."""
        for index in range(WINDOWS):
            for place in range(len(self.sources)):
                self.out[place].copy_(self.pool[(index * 7 + place) % 64, place])

    def raw(self, *, channels_first: bool) -> None:
        """Read the sources of each window as they are stored, or with the channels first."""
        read = self.shards.read_window if channels_first else self.shards.read_rows
        out = self.out if channels_first else self.out.transpose(1, 2).contiguous()
        for index in range(WINDOWS):
            for place, source in enumerate(self.sources):
                track = self.plan.tracks[self.plan.track[index, place]]
                read(track, source, int(self.plan.start[index, place]), out[place])

    def epoch(self, threads: int, *, first_touch: bool = False) -> None:
        """Read mixture and target through the loader's threads, as training does.

        With ``first_touch`` every record batch is read, and its checksum taken, for the first time.
        """
        shards = self.shards
        if first_touch:
            shards = ShardSet(shards.folder, shards.manifest)
        plan = draw_plan(shards.manifest, self.config, 0)
        with BatchLoader(shards, plan, threads=threads) as batches:
            assert sum(len(batch.condition) for batch in batches) == EPOCH


def a_window(read: Callable[[], None], windows: int) -> Figures:
    """Return the milliseconds that reading takes, a window; those of ended processes count."""
    before, found = os.times(), timed(read)
    after = os.times()
    found["cpu"] += after.children_user + after.children_system
    found["cpu"] -= before.children_user + before.children_system
    return {name: 1000 * seconds / windows for name, seconds in found.items()}


def show(best: dict[str, Figures]) -> None:
    """Print the table and the ratios that count."""
    rows = Table("way", "CPU ms", "wall ms", "windows/s", "x reference")
    reference, _, _, memcpy, raw, turned, whole, _, first = (row["cpu"] for row in best.values())
    for name, row in best.items():
        cpu, wall = row["cpu"], row["wall"]
        times = f"{reference / cpu:.1f}x"
        rows.row(name, f"{cpu:.2f}", f"{wall:.2f}", f"{1000 / wall:.0f}", times)
    print("\nratios of CPU time")
    print(f"  raw windows against the reference    {reference / raw:5.1f}x  (wanted: 12)")
    print(f"  float32 mixture + target against it  {reference / whole:5.1f}x  (wanted: 5)")
    print(f"  raw windows to a memcpy              {raw / memcpy:5.2f}   (wanted: at most 1.5)")
    print(f"  the same, [channel, frame, bin]      {turned / memcpy:5.2f}")
    print(f"  a first touch, with its crc32        {first / whole:5.2f}   of later ones")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a track")
    parser.add_argument("--tracks", type=int, default=6, help="number of tracks")
    parser.add_argument("--n_fft", type=int, default=2048, help="STFT size; the hop is half of it")
    parser.add_argument("--turns", type=int, default=6, help="how often each way is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(options.tracks):
            write_track(root / f"songs/train/{number}", options.seconds, first_seed=10 * number)
        config = RunConfig(
            output_dir=root,
            model=ModelConfig(n_fft=options.n_fft, hop_length=options.n_fft // 2),
            data=DataConfig(musdb_root=root / "songs"),
            train=TrainConfig(batch_size=BATCH, steps_per_epoch=EPOCH // BATCH),
        )
        ways = Ways(config, ShardSet(root / "shards", make_shards(config)))
        windows = {
            "reference: 4 soundfile reads + STFT": ways.reference,
            "torch's DataLoader of these, no worker": lambda: ways.dataloader(0),
            "torch's DataLoader of these, 2 workers": lambda: ways.dataloader(2),
            "memcpy of the same float16 bytes": ways.memcpy,
            "ours, raw float16 [frame, channel, bin]": lambda: ways.raw(channels_first=False),
            "ours, raw float16 [channel, frame, bin]": lambda: ways.raw(channels_first=True),
        }
        epochs = {
            "ours, float32 mixture + target, 1 thread": lambda: ways.epoch(1),
            "ours, float32 mixture + target, 2 threads": lambda: ways.epoch(2),
            "ours, the same at first touch, 1 thread": lambda: ways.epoch(1, first_touch=True),
        }
        measured = {name: partial(a_window, way, WINDOWS) for name, way in windows.items()}
        measured |= {name: partial(a_window, way, EPOCH) for name, way in epochs.items()}
        print(f"n_fft {options.n_fft}\n")
        show(best_of(options.turns, measured))


if __name__ == "__main__":
    main()
