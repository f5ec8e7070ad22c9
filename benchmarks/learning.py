"""What the networks learn on 40 synthetic songs: curves, and networks at equal steps.

    python -m benchmarks.learning [--output docs/learning.svg] [--presets laptop,demo]
    python -m benchmarks.learning --presets "" [--compare conditions] [--blocks 3] [--layers 1]
                                  [--seeds 3] [--steps 600] [--jobs 2]

The presets ``demo`` and ``laptop`` are trained on the same songs; their SDR per source against
epochs is drawn. Then networks are trained as ``laptop`` is, for equal steps and with several seeds,
and a table is printed. ``--compare`` says which: GPoCM with LaSAFT and FiLM without a frequency
transform (``transforms``); the ways in which a source becomes a vector, in validation of single
sources (``conditions``); the authors' first and second blocks (``generations``); shards of one grid
of windows and of four (``grids``). With 3 blocks of one convolution the network sees few bins, and
what a frequency transform adds shows early; with the preset's 5 blocks of two it takes thousands of
steps (docs/notes.md). ``--jobs`` trainings run at a time, each on one thread: half an hour on two
idle cores, ten minutes without the presets.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

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

# Of each comparison the networks: options that differ from the preset's.
COMPARED: dict[str, dict[str, Mapping[str, Any]]] = {
    "transforms": {name: VARIANTS[name] for name in ("CUNET_TFC_GPoCM_LaSAFT", "CUNET_TFC_FiLM")},
    "conditions": {
        "embedding": {},
        "one_hot_mode": {"control_vector_type": "one_hot_mode"},
        "multi_hot, sets of one": {"control_vector_type": "multi_hot", "set_sizes": (1.0,)},
        "multi_hot, sets of all sizes": {"control_vector_type": "multi_hot"},
    },
    "generations": {
        block: {"block": block}
        for block in ("tfc_lasaft", "tfc_lasaft_v2", "tfc_lightsaft", "tfc_lightsaft_v2")
    },
    "grids": {"one grid": {}, "four grids": {"phases": 4}},
}
COLOURS = {"vocals": "#0072b2", "drums": "#d55e00", "bass": "#009e73", "other": "#cc79a7"}

Curves = dict[str, list[float]]


def preset(name: str, root: Path) -> RunConfig:
    """Return a preset's settings, on the songs of the preset ``laptop``."""
    laptop = parse(["--preset", "laptop"], "run").config.data
    songs = [f"--{name}={value}" for name, value in laptop if "synth" in name]
    words = ["--preset", name, *songs, "--log", "False", "--sample_every_epochs", "0"]
    words += ["--output_dir", str(root / name), "--shards_dir", str(root / "shards")]
    return parse(words, "run").config


def compared(name: str, changed: dict[str, Any], seed: int, steps: int, root: Path) -> RunConfig:
    """Return a training of ``steps`` steps of the laptop's network with some options changed."""
    laptop = preset("laptop", root)
    of_data = {key: value for key, value in changed.items() if key in DataConfig.model_fields}
    of_model = {key: value for key, value in changed.items() if key not in of_data}
    if "phases" in changed:
        of_data["shards_dir"] = root / name / "shards"
    model = ModelConfig.model_validate(laptop.model.model_dump() | of_model)
    epochs = steps // (laptop.train.steps_per_epoch or steps)
    train = laptop.train.model_copy(update={"max_epochs": epochs, "seed": seed})
    data, place = laptop.data.model_copy(update=of_data), root / f"{name} {seed}"
    changes = {"model": model, "data": data, "train": train, "output_dir": place}
    return laptop.model_copy(update=changes)


def learn(text: str) -> Curves:
    """Train in this process; return the validation SDR of each source after each epoch, in dB."""
    config = from_json(text)
    result = run_session(config, torch.device("cpu"))
    records = read_history(RunFolder.of(config).metrics)
    epochs = [record["values"] for record in records if record["kind"] == "epoch"]
    curves = {name: [v[f"valid/{name}/SDR"] for v in epochs] for name in config.model.sources}
    mean = statistics.mean(values[-1] for values in curves.values())
    sys.stderr.write(
        f"{RunFolder.of(config).root.name}: {result.steps} steps, {result.seconds:.0f} s, "
        f"mean SDR {mean:.2f} dB\n"
    )
    return curves


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
    parser.add_argument("--compare", choices=COMPARED, default="transforms")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    options = parser.parse_args()
    networks = COMPARED[options.compare]
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
        for name in [name for name, changed in networks.items() if "phases" in changed]:
            data = DataConfig(musdb_root=root / "songs", phases=networks[name]["phases"])
            make_shards(laptop.model_copy(update={"output_dir": root / name, "data": data}))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            curves = {name: pool.submit(learn, to_json(preset(name, root))) for name in names}
            runs = {name: [] for name in networks}
            for seed in seeds:
                for name, changed in networks.items():
                    config = compared(name, {**changed, **size}, seed, steps, root)
                    runs[name].append(pool.submit(learn, to_json(config)))
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
    return 0 if options.compare != "transforms" or means[0] > means[1] else 1


if __name__ == "__main__":
    sys.exit(main())
