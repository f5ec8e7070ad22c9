"""Time and memory of BSS Eval against museval: ``python -m benchmarks.scoring [--long]``.

Each measurement runs in a fresh process with one thread, after a short warm-up, one after the
other. Ours is the median of three runs after the one that measures memory, museval's is one run.
CPU time is the fair figure on a machine that others use too; memory is the peak of the process
beyond what it held with the signals loaded and everything warm.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import museval.metrics
import numpy as np
from scipy.signal import lfilter

from lasaft.metrics import METRICS, bss_eval

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_RATE = 44100
_SOURCES = 4


def _signals(seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Return references and estimates [source, channel, sample]: coloured, correlated, leaking."""
    random = np.random.default_rng(0)
    shape = (2, int(seconds * _RATE))
    references = np.empty((_SOURCES, *shape))
    common = random.standard_normal(shape[1])
    for index in range(_SOURCES):
        noise = random.standard_normal(shape) + 0.5 * common
        references[index] = 0.1 / (1 + index) * np.asarray(lfilter([1.0], [1.0, -0.9], noise))
    estimates = np.empty_like(references)
    for index in range(_SOURCES):
        estimates[index] = 0.9 * references[index] + 0.1 * references[index - 1]
        estimates[index] += 0.01 * random.standard_normal(shape)
    return references, estimates


def _ours(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    scores = bss_eval(references, estimates)
    return np.stack([scores.metric(name) for name in METRICS])


def _museval(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    audio = (signals.transpose(0, 2, 1) for signals in (references, estimates))
    return np.stack(museval.metrics.bss_eval(*audio, window=_RATE, hop=_RATE)[:4])


_CONTENDERS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ours": _ours,
    "museval": _museval,
}
_RUNS = {"ours": 3, "museval": 0}  # beside the one that measures memory


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class _PeakMemory:
    """Samples the resident memory of this process every 5 ms; ``peak`` is the most seen."""

    def __enter__(self) -> _PeakMemory:
        self.peak = _resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, _resident_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _measure(name: str, seconds: float, output: Path) -> None:
    """Run one contender in this process and write its scores; print wall, CPU and memory."""
    score = _CONTENDERS[name]
    references, estimates = _signals(seconds)
    score(references[:1, :, :_RATE], estimates[:1, :, :_RATE])
    before = _resident_bytes()
    with _PeakMemory() as memory:
        times = [_timed(score, references, estimates, output)]
    for _ in range(_RUNS[name]):
        times.append(_timed(score, references, estimates, output))
    wall, cpu = np.median(times[-_RUNS[name] :], axis=0)
    print(wall, cpu, (memory.peak - before) / 1e6)


def _timed(
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    references: np.ndarray,
    estimates: np.ndarray,
    output: Path,
) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    scores = score(references, estimates)
    used = time.perf_counter() - wall, time.process_time() - cpu
    np.save(output, scores)
    return used


def _run(name: str, seconds: float, output: Path) -> tuple[float, float, float]:
    command = [sys.executable, "-m", "benchmarks.scoring", "--measure", name]
    command += ["--seconds", str(seconds), "--output", str(output)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **_ONE_THREAD}
    )
    wall, cpu, megabytes = map(float, done.stdout.split())
    return wall, cpu, megabytes


def _table(lengths: list[float], folder: Path) -> None:
    print("| signal, s | | wall, s | CPU, s | memory beyond signals, MB |")
    print("|---|---|---|---|---|")
    for seconds in lengths:
        figures, scores = {}, {}
        for name in _CONTENDERS:
            output = folder / f"{name}-{seconds:g}.npy"
            figures[name] = _run(name, seconds, output)
            scores[name] = np.load(output)
            wall, cpu, megabytes = figures[name]
            print(f"| {seconds:g} | {name} | {wall:.2f} | {cpu:.2f} | {megabytes:.0f} |")
        wall, cpu, memory = (figures["museval"][i] / figures["ours"][i] for i in range(3))
        print(f"| {seconds:g} | **ratio** | **{wall:.1f}x** | **{cpu:.1f}x** | {memory:.1f}x |")
        gaps = np.abs(scores["ours"] - scores["museval"]).max(axis=(1, 2))
        named = ", ".join(f"{n} {gap:.0e}" for n, gap in zip(METRICS, gaps, strict=True))
        print(f"\nLargest difference at {seconds:g} s, dB: {named}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="also 240 s (three minutes more)")
    parser.add_argument("--seconds", type=float, help="this length only, in s")
    parser.add_argument("--measure", choices=tuple(_CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure(options.measure, options.seconds, options.output)
        return
    lengths = [options.seconds] if options.seconds else [60.0] + [240.0] * options.long
    with tempfile.TemporaryDirectory() as folder:
        _table(lengths, Path(folder))


if __name__ == "__main__":
    main()
