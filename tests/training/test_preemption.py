"""A notice that a node has to go makes training save its state while there is time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.folders import RunFolder
from pipeline.training.loop import checkpoints as keeping
from pipeline.training.loop.outlet import Outlet
from pipeline.training.loop.trainer import Trainer
from tests.helpers.training import ALONE, NoiseData, tiny_config, tiny_model


@pytest.mark.parametrize("leaving", [True, False])
def test_the_state_is_saved_soon_only_while_a_node_is_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaving: bool
) -> None:
    monkeypatch.setattr(keeping, "_HURRIED_SECONDS", 0.0)
    config = tiny_config(tmp_path, mid_epoch_seconds=1e6)
    outlet = Outlet(RunFolder.of(config))
    outlet.leaving = leaving
    trainer = Trainer(
        config, tiny_model(config), NoiseData(config, stop_at=3), RunFolder.of(config), ALONE,
        provenance={}, outlet=outlet,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert RunFolder.of(config).state.exists() == leaving
