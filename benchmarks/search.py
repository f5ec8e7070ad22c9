"""What a search costs beside its trainings, and what early stopping saves.

    python -m benchmarks.search --cpus 2

Two tables: the seconds a trial takes beyond its training, one trial at a time in process; and the
same twelve candidates with and without ASHA. Everything is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path

from benchmarks.measure import Table, timed
from jobs.cli import parse
from pipeline.cluster.connection import connected
from pipeline.config import ClusterConfig, RunConfig
from pipeline.search.ranking import SearchResult
from pipeline.search.search import search
from pipeline.workflow.stages import make_shards

_SPACE = """
options:
  block: [tfc_tdf, tfc_lasaft]
  modulation: [film, gpocm]
  lr: {log: [0.0003, 0.03]}
"""
_SETTINGS = shlex.split(
    "--n_fft 1024 --hop_length 512 --num_frame 64 --n_blocks 3 --internal_channels 6 "
    "--n_internal_layers 2 --num_tdfs 3 --dk 8 --embedding_dim 8 --control_n_layer 2 "
    "--pocm_norm None --spec_type magnitude --spec_est_mode masking --synthetic_train 6 "
    "--synthetic_valid 2 --synthetic_test 1 --synthetic_seconds 8 --batch_size 4 --max_epochs 9 "
    "--train_loss spec_l1 --log False --search_seed 1"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="steps of an epoch")
    parser.add_argument("--trials", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, connected(ClusterConfig(num_cpus=options.cpus)):
        root = Path(folder)
        (root / "space.yaml").write_text(_SPACE)
        sizes = shlex.split(
            f"--space {root}/space.yaml --num_trials {options.trials} --num_cpus {options.cpus} "
            f"--steps_per_epoch {options.steps} --shards_dir {root}/shards"
        )

        def config(name: str, *words: str) -> RunConfig:
            place = ["--output_dir", str(root / name)]
            return parse([*_SETTINGS, *sizes, *place, *words], "run").config

        make_shards(config("songs"))
        found: list[SearchResult] = []
        short = config("short", "--trial_epochs", "1", "--max_concurrent_trials", "1")
        seconds = timed(lambda: found.append(search(short)))["wall"]
        trials = found[0].trials
        trained = sum(trial.seconds for trial in trials)
        beyond = f"{(seconds - trained) / len(trials):.2f}"
        rows = Table("trials", "seconds", "trained", "beyond, a trial")
        rows.row(len(trials), f"{seconds:.1f}", f"{trained:.1f}", beyond)

        whole = search(config("whole"))
        truth = {row.trial.number: row.trial.figure("sdr") or 0.0 for row in whole.rows}
        print()
        rows = Table("scheduler", "epochs", "winner", "its SDR when whole, dB")
        asha = search(config("asha", "--scheduler", "asha"))
        for name, result in (("none", whole), ("asha", asha)):
            winner, epochs = result.winner.trial.number, sum(t.epochs for t in result.trials)
            rows.row(name, epochs, winner, f"{truth[winner]:.3f}")


if __name__ == "__main__":
    main()
