"""An interrupted training of version 0.1 goes on in its place, and then to a later epoch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.runs import unpack, words


def _run(folder: Path, **options: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.run", *words(folder, "halfway", **options)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.timeout(300)
def test_it_goes_on_from_its_state_and_to_a_later_epoch(tmp_path: Path) -> None:
    unpack(tmp_path)
    run = tmp_path / "halfway"
    before = (run / "training" / "metrics.jsonl").read_text().splitlines()
    first_epoch = [line for line in before if '"epoch": 0' in line]
    said = _run(tmp_path, max_epochs=2)
    assert "train: was interrupted; going on from there" in said
    assert ": 120 steps" in said
    said = _run(tmp_path, max_epochs=3, patience=30, time_limit_hours=2, compile=False)
    assert "train: goes on with max_epochs 2 -> 3" in said
    assert ": 180 steps" in said
    assert not list((run / "previous").glob("train-*"))
    after = (run / "training" / "metrics.jsonl").read_text().splitlines()
    assert [line for line in after if line in first_epoch] == first_epoch
