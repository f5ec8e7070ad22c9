"""The comparison with other networks says what is missing where their packages cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers


def test_without_a_network_our_rows_are_measured_and_the_others_say_why_they_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = []

    def in_own_process(module: str, *words: str, **settings: Any) -> dict[str, float]:
        measured.append((words[1], words[3], settings["packages"]))
        return {"cpu": 2 * peers._SECONDS, "gb": 1.0, "parameters": 1e6}

    monkeypatch.setattr(peers, "in_own_process", in_own_process)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    peers.compare(threads=1, turns=1)
    ours = [name for name, build in peers.SYSTEMS.items() if build is peers.ours]
    assert measured == [(name, bits, None) for name in ours for bits in ("32", "bf16")]
    _, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in peers.SYSTEMS]
    assert all("| 2.00 | - | 1.00 |" in row for row in rows[: len(ours)])
    assert all("cannot be installed (ERROR: " in row for row in rows[len(ours) :])
    assert not list(tmp_path.glob("lasaft/peers/*"))
