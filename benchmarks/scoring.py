"""Time and memory of BSS Eval against museval: ``python -m benchmarks.scoring [--long]``.

Each measurement runs in a fresh process with one thread, after a short warm-up, one after the
other. Ours is the median of three runs after the one that measures memory, museval's is one run.
CPU time is the fair figure on a machine that others use too; memory is the peak of the process
beyond what it held with the signals loaded and everything warm.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

import museval.metrics
import numpy as np

from benchmarks.measure import Figures, Table, in_own_process, peak_bytes, timed
from benchmarks.scoring_device import RATE, signals
from lasaft.metrics import METRICS, bss_eval


def ours(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    scores = bss_eval(references, estimates)
    return np.stack([scores.metric(name) for name in METRICS])


def musevals(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    audio = (signals.transpose(0, 2, 1) for signals in (references, estimates))
    return np.stack(museval.metrics.bss_eval(*audio, window=RATE, hop=RATE)[:4])


_SCORERS = {"ours": ours, "museval": musevals}


def measure(name: str, seconds: float, output: Path) -> Figures:
    """Score in this process; return seconds and memory, and write the scores to a file."""
    references, estimates = signals(seconds)

    def score() -> None:
        np.save(output, _SCORERS[name](references, estimates))

    _SCORERS[name](references[:1, :, :RATE], estimates[:1, :, :RATE])
    before = peak_bytes(anew=True)
    runs = [timed(score)]
    megabytes = (peak_bytes() - before) / 1e6
    if name == "ours":
        runs = [timed(score) for _ in range(3)]
    return {key: median(run[key] for run in runs) for key in ("wall", "cpu")} | {"mb": megabytes}


def compare(lengths: list[float], folder: Path) -> None:
    """Print a table of both, and how far apart their scores are."""
    rows = Table("signal, s", "", "wall, s", "CPU, s", "memory beyond signals, MB")
    gaps = []
    for seconds in lengths:
        found, scores = {}, {}
        for name in _SCORERS:
            file = folder / f"{name}.npy"
            words = ["--measure", name, "--seconds", str(seconds), "--output", str(file)]
            found[name] = in_own_process("benchmarks.scoring", *words)
            scores[name] = np.load(file)
            wall, cpu, megabytes = found[name].values()
            rows.row(f"{seconds:g}", name, f"{wall:.2f}", f"{cpu:.2f}", f"{megabytes:.0f}")
        ratios = [found["museval"][key] / found["ours"][key] for key in found["ours"]]
        rows.row(f"{seconds:g}", "**ratio**", *(f"{ratio:.1f}x" for ratio in ratios))
        gap = np.abs(scores["ours"] - scores["museval"]).max(axis=(1, 2))
        named = [f"{metric} {each:.0e}" for metric, each in zip(METRICS, gap, strict=True)]
        gaps.append(f"Largest difference at {seconds:g} s, dB: {', '.join(named)}")
    print("", *gaps, sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="also 240 s (three minutes more)")
    parser.add_argument("--seconds", type=float, help="this length only, in s")
    parser.add_argument("--measure", choices=tuple(_SCORERS), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.seconds, options.output)))
        return
    lengths = [options.seconds] if options.seconds else [60.0] + [240.0] * options.long
    with tempfile.TemporaryDirectory() as folder:
        compare(lengths, Path(folder))


if __name__ == "__main__":
    main()
