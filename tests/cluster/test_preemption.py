"""A notice that a node has to go makes training save its state while there is time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.exceptions import RpcError

from pipeline.cluster import preemption
from pipeline.cluster.preemption import noticed
from pipeline.config.folders import RunFolder
from pipeline.training.loop import checkpoints as keeping
from pipeline.training.loop.trainer import Trainer
from tests.helpers.training import ALONE, NoiseData, tiny_config, tiny_model


@pytest.mark.parametrize("leaving", [True, False])
def test_the_state_is_saved_soon_only_while_a_node_is_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaving: bool
) -> None:
    monkeypatch.setattr(keeping, "_HURRIED_SECONDS", 0.0)
    config = tiny_config(tmp_path, mid_epoch_seconds=1e6)
    trainer = Trainer(
        config, tiny_model(config), NoiseData(config, stop_at=3), RunFolder.of(config), ALONE,
        provenance={}, hurry=lambda: leaving,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert RunFolder.of(config).state.exists() == leaving


def test_the_notice_is_heard_also_after_the_cluster_was_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notice = ray.train.PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [1]})
    answers: list[Any] = [None, RpcError("no answer", rpc_code=14), notice]

    def ask() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray.train, "get_preemption_info", ask)
    monkeypatch.setattr(preemption, "_POLL_SECONDS", 0.05)
    with noticed() as leaving:
        assert not leaving()
        _until(leaving)
    assert answers == []


def _until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
