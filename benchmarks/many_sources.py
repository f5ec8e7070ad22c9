"""Four sources or sixteen: what networks of one size learn of the same songs.

    python -m benchmarks.many_sources [--seeds 3] [--steps 600] [--jobs 2]

The four stems of 40 synthetic songs are cut into four bands of frequencies each: sixteen sources,
four of which add up to a stem. Networks are trained as ``laptop`` is, with 3 blocks of one
convolution: on the four stems, on the sixteen bands, and on sets of these (``multi_hot``). Then
each separates the validation songs into the stems (from the bands: the sum of four estimates, or
the estimate of a set of four) and into the bands (from the stems: an estimate is cut as the stems
were), so that all are asked for the same sounds. The table has the median SDR of a whole song's
sources in dB. Half an hour on two idle cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.learning import compared, learn, preset
from benchmarks.measure import Table
from lasaft.checkpoint import load_model
from lasaft.metrics import usdr
from lasaft.separation.separator import Separator
from pipeline.config import DataConfig, RunConfig, from_json, to_json
from pipeline.config.folders import RunFolder
from pipeline.data.songs.tracks import list_tracks, read_track
from pipeline.data.songs.wanted import Wanted
from tests.helpers.shards import make_shards
from tests.helpers.songs import make_musdb

Array = NDArray[Any]

EDGES_HZ = (300.0, 1200.0, 4800.0)
PARTS = len(EDGES_HZ) + 1  # of a stem
STEMS = ("vocals", "drums", "bass", "other")
BANDS = tuple(f"{stem}_{number}" for stem in STEMS for number in range(PARTS))
SETS = tuple("+".join(BANDS[at : at + PARTS]) for at in range(0, len(BANDS), PARTS))
SIZE = {"n_blocks": 3, "n_internal_layers": 1}
NETWORKS: dict[str, dict[str, Any]] = {
    "4 stems": {},
    "16 bands": {"sources": BANDS},
    "16 bands, sets of all sizes": {"sources": BANDS, "control_vector_type": "multi_hot"},
}


def bands_of(wave: Array, sample_rate: int) -> list[Array]:
    """Cut a wave [channel, sample] into its bands, whose sum is the wave."""
    spectrum = np.fft.rfft(wave, axis=-1)
    hz = np.fft.rfftfreq(wave.shape[-1], 1 / sample_rate)
    which = np.digitize(hz, EDGES_HZ)
    return [
        np.fft.irfft(spectrum * (which == band), wave.shape[-1], axis=-1).astype(np.float32)
        for band in range(PARTS)
    ]


def cut(songs: Path, into: Path) -> None:
    """Write the songs' bands, folder by folder, with their mixtures and ``mus.yaml``."""
    into.mkdir()
    (into / "mus.yaml").write_bytes((songs / "mus.yaml").read_bytes())
    for file in sorted(songs.glob("*/*/*.wav")):
        wave, rate = soundfile.read(file, dtype="float32", always_2d=True)
        folder = into / file.parent.relative_to(songs)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {file.stem: wave}
        if file.stem in STEMS:
            bands = bands_of(wave.T, rate)
            parts = {f"{file.stem}_{number}": band.T for number, band in enumerate(bands)}
        for name, part in parts.items():
            soundfile.write(folder / f"{name}.wav", part, rate, "FLOAT")


def stems_of(bands: list[Array]) -> list[Array]:
    """Add the bands up to the stems."""
    return [np.sum(bands[at : at + PARTS], axis=0) for at in range(0, len(bands), PARTS)]


def scores(config: RunConfig, songs: Path) -> tuple[float, float]:
    """Return the median SDR of the stems and of the bands in the validation songs, in dB."""
    separator = Separator(load_model(RunFolder.of(config).checkpoint))
    names, of_sets = config.model.sources, config.model.control_vector_type == "multi_hot"
    found: tuple[list[float], list[float]] = ([], [])
    for track in list_tracks(songs, Wanted.of(config.model, config.data)):
        if track.split != "valid":
            continue
        audio = read_track(track)
        true, rate = list(audio.sources.numpy()), audio.sample_rate
        separate = partial(separator.separate, audio.mixture, rate)
        ours = [estimate.numpy() for estimate in separate(names).values()]
        if names == BANDS:
            stems, bands = stems_of(true), true
            our_bands, our_stems = ours, stems_of(ours)
            if of_sets:
                our_stems = [estimate.numpy() for estimate in separate(SETS).values()]
        else:
            stems, our_stems = true, ours
            bands = [band for stem in true for band in bands_of(stem, rate)]
            our_bands = [band for stem in ours for band in bands_of(stem, rate)]
        found[0].extend(map(float, usdr(stems, our_stems)))
        found[1].extend(map(float, usdr(bands, our_bands)))
    return statistics.median(found[0]), statistics.median(found[1])


def learn_and_score(text: str, songs: Path) -> tuple[float, float]:
    """Train in this process; return its :func:`scores`."""
    learn(text)
    return scores(from_json(text), songs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="of each, whole epochs of 150")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started from here
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = preset("laptop", root).data
        songs = make_musdb(
            root / "stems",
            train=data.synthetic_train,
            valid=data.synthetic_valid,
            test=0,
            seconds=data.synthetic_seconds,
            seed=data.synthetic_seed,
        )
        cut(songs, root / "bands")
        runs = {name: [] for name in NETWORKS}
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            for name, changed in NETWORKS.items():
                kind = "bands" if "sources" in changed else "stems"
                for seed in range(options.seeds):
                    config = compared(name, {**changed, **SIZE}, seed, options.steps, root)
                    place = DataConfig(musdb_root=root / kind, shards_dir=root / f"{kind} shards")
                    config = config.model_copy(update={"data": place})
                    if not (root / f"{kind} shards").exists():
                        make_shards(config)
                    runs[name].append(pool.submit(learn_and_score, to_json(config), root / kind))
        titles = ("stems", "bands")
        columns = [f"{title}, seed {seed}" for title in titles for seed in range(options.seeds)]
        print(f"median SDR after {options.steps} steps, in dB\n")
        rows = Table("trained on", *columns, *(f"{title}, mean" for title in titles))
        for name, found in runs.items():
            values = [run.result() for run in found]
            by_kind = [[value[which] for value in values] for which in range(len(titles))]
            cells = [value for kind in by_kind for value in kind]
            cells += [statistics.mean(kind) for kind in by_kind]
            rows.row(name, *(f"{value:.2f}" for value in cells))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
