"""An interrupted training of version 0.1 goes on in its place, and then to a later epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cluster.connection import connected
from pipeline.config import ClusterConfig
from pipeline.config.folders import RunFolder
from pipeline.workflow.run import Workflow
from pipeline.workflow.steps import StepRunner
from tests.helpers.runs import config_of, unpack


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_it_goes_on_from_its_state_and_to_a_later_epoch(
    tmp_path: Path,
) -> None:
    def said_by(**options: object) -> str:
        config, said = config_of(tmp_path, "halfway", **options), list[str]()
        steps = Workflow(config, said.append)._steps(RunFolder.of(config))
        StepRunner(RunFolder.of(config).root, config, said.append).run(steps[:2])
        return "\n".join(said)

    unpack(tmp_path)
    run = tmp_path / "halfway"
    before = (run / "training" / "metrics.jsonl").read_text().splitlines()
    first_epoch = [line for line in before if '"epoch": 0' in line]
    with connected(ClusterConfig()):
        said = said_by(max_epochs=2)
        assert "train: was interrupted; going on from there" in said
        assert ": 120 steps" in said
        said = said_by(max_epochs=3, patience=30, time_limit_hours=2, compile=False)
    assert "train: goes on with max_epochs 2 -> 3" in said
    assert ": 180 steps" in said
    assert not list((run / "previous").glob("train-*"))
    after = (run / "training" / "metrics.jsonl").read_text().splitlines()
    assert [line for line in after if line in first_epoch] == first_epoch
