"""A real MUSDB18 excerpt, the whole way from its .stem.mp4 to scores that museval agrees with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.helpers import ROOT

DATA = os.environ.get("LASAFT_REAL_DATA")

pytestmark = [
    pytest.mark.skipif(DATA is None, reason="LASAFT_REAL_DATA names no folder with real audio"),
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not on PATH"),
]


def _call(module: str, *words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert DATA is not None
    output = tmp_path_factory.mktemp("real")
    _call(
        "jobs.run", "--preset", "demo", "--output_dir", output, "--split", "train",
        "--musdb_root", Path(DATA) / "musdb18-sample", "--steps_per_epoch", "10",
        "--max_epochs", "2", "--verify", "1", "--save_estimates", "wav",
        "--internal_channels", "4", "--n_internal_layers", "1", "--num_tdfs", "2",
        "--log", "False",
    )  # fmt: skip
    return output


@pytest.mark.timeout(280)
def test_the_excerpt_is_trained_on_and_its_scores_are_museval_s(run: Path) -> None:
    summary = json.loads((run / "scores/CUNET_TFC_GPoCM_LaSAFT/summary.json").read_text())
    (verified,) = summary["verified"]
    assert verified["agrees"] is True
    assert verified["largest_db"] <= 1e-4
    losses = [
        record["values"]["train/epoch_loss"]
        for record in map(json.loads, (run / "training/metrics.jsonl").read_text().splitlines())
        if record["kind"] == "epoch"
    ]
    assert losses[1] < losses[0]


@pytest.mark.timeout(120)
def test_a_real_song_is_separated_with_the_trained_checkpoint(run: Path, tmp_path: Path) -> None:
    assert DATA is not None
    song = Path(DATA) / "audio" / "stereo_11s.mp3"
    _call(
        "lasaft.cli", "separate", song, "--checkpoint", run / "checkpoint",
        "--output_dir", tmp_path,
    )  # fmt: skip
    mixture, rate = soundfile.read(song, always_2d=True)
    for source in ("vocals", "drums", "bass", "other"):
        stem, stem_rate = soundfile.read(tmp_path / song.stem / f"{source}.wav", always_2d=True)
        assert stem_rate == rate
        assert stem.shape == mixture.shape
        assert np.isfinite(stem).all()
        assert np.abs(stem).max() > 0
