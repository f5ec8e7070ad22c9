"""What the networks learn on 40 synthetic songs: curves, and two networks at equal steps.

    python -m benchmarks.learning [--output docs/learning.svg] [--presets laptop,demo]
    python -m benchmarks.learning --presets "" [--blocks 3] [--layers 1] [--seeds 3] [--steps 600]
    python -m benchmarks.learning --presets "" --phases 4     # one grid of windows against four

The presets ``demo`` and ``laptop`` are trained on the same songs; their SDR per source against
epochs is drawn. Then GPoCM with LaSAFT and FiLM without a frequency transform are trained as
``laptop`` is, for equal steps and with several seeds, and a table is printed. With 3 blocks of one
convolution the network sees few bins, and what a frequency transform adds shows early; with the
preset's 5 blocks of two it takes thousands of steps (docs/notes.md). With ``--phases`` GPoCM with
LaSAFT alone is trained, on shards of one grid of windows and of several. ``--jobs`` trainings run
at a time, each on one thread: half an hour on two idle cores, ten minutes without the presets.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.measure import Table
from jobs.cli import parse
from lasaft.config import VARIANTS, ModelConfig
from pipeline.config import DataConfig, RunConfig, from_json, to_json
from pipeline.config.folders import RunFolder
from pipeline.training.loop.journal import read_history
from pipeline.training.loop.worker import run_session
from tests.helpers.shards import make_shards
from tests.helpers.small_training import make_data

NETWORKS = ("CUNET_TFC_GPoCM_LaSAFT", "CUNET_TFC_FiLM")
COLOURS = {"vocals": "#0072b2", "drums": "#d55e00", "bass": "#009e73", "other": "#cc79a7"}

Curves = dict[str, list[float]]


def preset(name: str, root: Path) -> RunConfig:
    """Return a preset's settings, on the songs of the preset ``laptop``."""
    laptop = parse(["--preset", "laptop"], "run").config.data
    songs = [f"--{name}={value}" for name, value in laptop if "synth" in name]
    words = ["--preset", name, *songs, "--log", "False", "--sample_every_epochs", "0"]
    words += ["--output_dir", str(root / name), "--shards_dir", str(root / "shards")]
    return parse(words, "run").config


def compared(name: str, size: dict[str, int], seed: int, steps: int, root: Path) -> RunConfig:
    """Return a training of ``steps`` steps of one of ``NETWORKS``, or the first's on more grids."""
    laptop = preset("laptop", root)
    if name not in NETWORKS:
        data = laptop.data.model_copy(update={"shards_dir": root / name / "shards"})
        laptop = laptop.model_copy(update={"data": data})
    changed = {**VARIANTS[name if name in NETWORKS else NETWORKS[0]], **size}
    model = ModelConfig.model_validate(laptop.model.model_dump() | changed)
    epochs = steps // (laptop.train.steps_per_epoch or steps)
    train = laptop.train.model_copy(update={"max_epochs": epochs, "seed": seed})
    place = root / f"{name} {seed}"
    return laptop.model_copy(update={"model": model, "train": train, "output_dir": place})


def learn(text: str) -> Curves:
    """Train in this process; return the validation SDR of each source after each epoch, in dB."""
    config = from_json(text)
    result = run_session(config, torch.device("cpu"))
    records = read_history(RunFolder.of(config).metrics)
    epochs = [record["values"] for record in records if record["kind"] == "epoch"]
    sys.stderr.write(
        f"{RunFolder.of(config).root.name}: {result.steps} steps, {result.seconds:.0f} s\n"
    )
    return {name: [v[f"valid/{name}/SDR"] for v in epochs] for name in config.model.sources}


def draw(curves: dict[str, Curves], path: Path) -> None:
    """Draw the presets' curves, one panel each, into an SVG or PNG file."""
    with rc_context({"svg.hashsalt": "learning", "font.size": 9}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True)
        for axes, (name, found) in zip(panels, curves.items(), strict=True):
            for source, values in found.items():
                epochs = range(1, len(values) + 1)
                axes.plot(epochs, values, "o-", ms=3, color=COLOURS[source], label=source)
            axes.set(title=f"preset {name}", xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("validation SDR in dB")
        panels[-1].legend()
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=120, metadata=metadata)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("docs/learning.svg"))
    parser.add_argument("--blocks", type=int, default=3, help="n_blocks of both networks")
    parser.add_argument("--layers", type=int, default=1, help="n_internal_layers of both networks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="of each, whole epochs of 150")
    parser.add_argument("--presets", default="laptop,demo", help="curves that are drawn")
    parser.add_argument("--phases", type=int, default=1, help="grids, against one grid")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    options = parser.parse_args()
    size = {"n_blocks": options.blocks, "n_internal_layers": options.layers}
    steps, seeds = options.steps, range(options.seeds)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started from here
    names = [name for name in options.presets.split(",") if name]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        laptop = preset("laptop", root)
        data = laptop.data
        songs = {"train": data.synthetic_train, "valid": data.synthetic_valid}
        kind = {"seconds": data.synthetic_seconds, "seed": data.synthetic_seed}
        make_data(root, laptop, **songs, **kind)
        contest = NETWORKS
        if options.phases > 1:
            contest = (f"{options.phases} grids", NETWORKS[0])
            data = DataConfig(musdb_root=root / "songs", phases=options.phases)
            make_shards(laptop.model_copy(update={"output_dir": root / contest[0], "data": data}))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            curves = {name: pool.submit(learn, to_json(preset(name, root))) for name in names}
            texts = {
                network: [to_json(compared(network, size, seed, steps, root)) for seed in seeds]
                for network in contest
            }
            runs = {name: [pool.submit(learn, each) for each in texts[name]] for name in contest}
        if names:
            draw({name: curves[name].result() for name in sorted(names)}, options.output)
    print(
        f"mean SDR over sources after {steps} steps, {options.blocks} blocks of "
        f"{options.layers} convolutions, in dB\n"
    )
    rows = Table("network", *(f"seed {seed}" for seed in seeds), "mean")
    means = []
    for network, found in runs.items():
        ends = [[values[-1] for values in each.result().values()] for each in found]
        values = [statistics.mean(end) for end in ends]
        means.append(statistics.mean(values))
        rows.row(network, *(f"{value:.2f}" for value in [*values, means[-1]]))
    return 0 if means[0] > means[1] else 1


if __name__ == "__main__":
    sys.exit(main())
