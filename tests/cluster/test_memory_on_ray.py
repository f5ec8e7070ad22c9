"""Where Ray's monitor kills processes for memory, a command tries again, then ends in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.small_training import config_of, prepare, words_of

# Every machine has used more than that: whatever starts is killed.
_NO_MEMORY = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "50"}


def _told(*words: str) -> list[str]:
    """Return what a command that fails for memory says, line by line."""
    done = subprocess.run(
        [sys.executable, "-m", *words, "--quiet"],
        cwd=ROOT, env=os.environ | _NO_MEMORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert not done.stdout
    return done.stderr.splitlines()


@pytest.mark.timeout(300)
def test_a_song_that_lacks_memory_each_time_is_named_with_what_to_set(tmp_path: Path) -> None:
    counts = ["--synthetic_train", "1", "--synthetic_valid", "0", "--synthetic_test", "0"]
    words = [*counts, "--preset", "demo", "--synthetic_seconds", "60", "--num_cpus", "1"]
    first, song = _told("jobs.preprocess", *words, "--output_dir", str(tmp_path / "run"))
    assert first == "preprocess: error: 1 of 1 failed; the others are done and kept:"
    assert re.fullmatch(
        r"[^:]+: ran out of memory: [\d.]+ of [\d.]+ GB of its node were in use, [\d.]+ GB by "
        r"itself; 1.5 GB of memory were set aside for it; tried 3 times; allowed: a larger "
        r"task_memory .*, or a node with more memory",
        song,
    )


@pytest.mark.timeout(300)
def test_a_training_that_lacks_memory_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    prepare(tmp_path)
    config = config_of(tmp_path, "run", world_size=1)
    (line,) = _told("jobs.train", *words_of(config))
    assert re.match(r"train: error: training: .* \(ran out of memory: .*a smaller batch_size", line)
    assert line.endswith("is kept: the same command goes on")
