"""The short form of ``python -m benchmarks.run_damage``: no damage of a run gets through."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.helpers.run_damage import MENDED, TOLD, WAYS, Run, finished_run

_SCORES = "scores/mixture"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with finished_run(tmp_path_factory.mktemp("damage")) as made:
        yield made


def _outcome(run: Run, file: str, way: str, command: str) -> tuple[str, str]:
    (name,) = [one for one in run.files if one.endswith(file)]
    return run.outcome(name, way, command, random.Random(f"{file} {way}"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", ["train", "run"])
def test_a_damaged_checkpoint_is_published_again(run: Run, command: str, way: str) -> None:
    for file in ("checkpoint/weights.safetensors", "checkpoint/config.json"):
        (name,) = [one for one in run.files if one == file]
        assert run.outcome(name, way, command, random.Random(way))[0] == MENDED


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", ["train", "run"])
def test_a_damaged_journal_is_told(run: Run, command: str, way: str) -> None:
    outcome, told = _outcome(run, "metrics.jsonl", way, command)
    assert outcome == TOLD
    assert "training/metrics.jsonl: is not as the training has left it" in told


@pytest.mark.parametrize("way", WAYS)
def test_a_report_is_made_of_no_damaged_scores(run: Run, way: str) -> None:
    for file in (f"{_SCORES}/summary.json", "mixture/test/North By Ferry - Glass Garden.json"):
        outcome, told = _outcome(run, file, way, "report")
        assert outcome == TOLD
        assert "mixture" in told


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_report_is_written_again(run: Run, way: str) -> None:
    assert _outcome(run, "report/leaderboard.json", way, "run")[0] == MENDED
