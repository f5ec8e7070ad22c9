"""What a search costs beside its trainings, and what early stopping saves.

    python -m benchmarks.search --cpus 2

Two tables: the seconds a trial takes beyond its training, one trial at a time in process; and the
same twelve candidates with and without ASHA. Everything is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from lasaft.config import ModelConfig
from pipeline.cluster.connection import connected
from pipeline.config import (
    ClusterConfig,
    DataConfig,
    RunConfig,
    SearchConfig,
    TrackingConfig,
    TrainConfig,
)
from pipeline.search.search import search
from pipeline.workflow.stages import make_shards

SPACE = """
options:
  block: [tfc_tdf, tfc_lasaft]
  modulation: [film, gpocm]
  lr: {log: [0.0003, 0.03]}
"""


def run_config(root: Path, name: str, cpus: int, steps: int, **search: object) -> RunConfig:
    return RunConfig(
        output_dir=root / name,
        model=ModelConfig(
            n_fft=1024, hop_length=512, num_frame=64, n_blocks=3, internal_channels=6,
            n_internal_layers=2, num_tdfs=3, dk=8, embedding_dim=8, control_n_layer=2,
            pocm_norm=None, spec_type="magnitude", spec_est_mode="masking",
        ),
        data=DataConfig(
            shards_dir=root / "shards", synthetic_train=6, synthetic_valid=2, synthetic_test=1,
            synthetic_seconds=8,
        ),
        train=TrainConfig(batch_size=4, steps_per_epoch=steps, max_epochs=9, train_loss="spec_l1"),
        search=SearchConfig(**search),  # pyright: ignore[reportArgumentType]
        tracking=TrackingConfig(log=False),
        cluster=ClusterConfig(num_cpus=cpus),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="steps of an epoch")
    parser.add_argument("--trials", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, connected(ClusterConfig(num_cpus=options.cpus)):
        root = Path(folder)
        space = root / "space.yaml"
        space.write_text(SPACE)
        common = {"space": str(space), "num_trials": options.trials, "search_seed": 1}

        def config(name: str, **others: object) -> RunConfig:
            return run_config(root, name, options.cpus, options.steps, **common, **others)

        make_shards(config("songs"))
        short = config("overhead", trial_epochs=1, max_concurrent_trials=1)
        start = time.perf_counter()
        trials = search(short).trials
        seconds, trained = time.perf_counter() - start, sum(one.seconds for one in trials)
        beyond = (seconds - trained) / len(trials)
        print(f"{'trials':>8} {'seconds':>9} {'trained':>9} {'beyond, a trial':>16}")
        print(f"{len(trials):8} {seconds:9.1f} {trained:9.1f} {beyond:16.2f}")

        whole = search(config("whole"))
        asha = search(config("asha", scheduler="asha"))
        truth = {row.trial.number: row.trial.figure("sdr") or 0.0 for row in whole.rows}
        print(f"\n{'scheduler':>10} {'epochs':>7} {'winner':>7} {'its SDR when whole, dB':>23}")
        for name, found in (("none", whole), ("asha", asha)):
            winner = found.winner.trial.number
            epochs = sum(one.epochs for one in found.trials)
            print(f"{name:>10} {epochs:7} {winner:>7} {truth[winner]:23.3f}")


if __name__ == "__main__":
    main()
