"""``python -m jobs.doctor``: what it finds, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.doctor import main
from tests.helpers.songs import make_musdb

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def test_a_sound_machine_has_no_fault_and_nothing_is_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_musdb(tmp_path / "musdb", train=1, valid=1, test=1, seconds=2.0)
    output = tmp_path / "runs" / "one"
    assert main(["--musdb_root", str(root), "--output_dir", str(output), "--num_cpus", "1"]) == 0
    text = capsys.readouterr().out
    assert "1 train, 1 valid, 1 test tracks (MUSDB18 has 86/14/50)" in text
    assert f"output_dir {output} can be written, and is seen from every node" in text
    assert text.rstrip().endswith("all well")
    assert not (tmp_path / "runs").exists()


def test_every_fault_is_named_at_once_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_musdb(tmp_path / "musdb", train=2, valid=0, test=1, seconds=2.0)
    first, second = sorted((root / "train").iterdir())
    (first / "bass.wav").unlink()
    (second / "drums.wav").write_bytes(b"no audio")
    address = "http://127.0.0.1:9"  # nothing listens there
    words = ["--musdb_root", str(root), "--output_dir", str(tmp_path / "run"), "--num_cpus", "1"]
    words += ["--gpus", "64", "--batch_size", "128", "--tracking_uri", address, "--json"]
    assert main(words) == 1
    found = json.loads(capsys.readouterr().out)
    faults = [check["text"] for check in found["checks"] if check["verdict"] == "FAULT"]
    assert found["faults"] == len(faults) == 4
    assert any(f"{first.name}: bass.wav is missing" in fault for fault in faults)
    assert any(f"{second.name}: drums.wav cannot be read as audio" in fault for fault in faults)
    assert any("gpus: got 64, the cluster has 0" in fault for fault in faults)
    assert any("tracking_uri: http://127.0.0.1:9 does not answer" in fault for fault in faults)
