"""Saving while training goes on: nothing stops, nothing is lost, faults are told."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from lasaft.errors import StageError
from pipeline.config import TrainConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.background import BackgroundWriter, folder_faults
from pipeline.training.loop.optimiser import build_optimizer
from pipeline.training.loop.state_file import capture_state, load_state
from tests.helpers.training import assert_same_training, run_tiny, tiny_config, training_history

# Three processes save ever new states as a training does, every tensor of the n-th holding n, and
# are killed in the middle of a write. (One thread: a fork does not have its parent's pool.)
KILLS = """
import glob, os, signal, sys, time, torch
from pathlib import Path
from pipeline.training.loop.background import BackgroundWriter
from pipeline.training.loop.state_file import TrainingState, load_state, write_state

path, last = Path(sys.argv[1]), 0
torch.set_num_threads(1)

def save(step):
    with BackgroundWriter() as writer:
        while True:
            step += 1
            tensors = {f"model/{n}": torch.full((1000, 1000), float(step)) for n in range(8)}
            state = TrainingState({"step": step, "optimizer": {}}, tensors)
            writer.submit(lambda: write_state(path, state))

for delay in (0.003, 0.017, 0.031):
    child = os.fork()
    if not child:
        save(last)
    while not (path.exists() and glob.glob(f"{path.parent}/.{path.name}.*.tmp-{child}")):
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = load_state(path)
    step = state.progress["step"]
    assert step >= last and len(state.tensors) == 8
    assert all((value == step).all() for value in state.tensors.values())
    last = step
print("whole", last)
"""


def test_work_is_done_in_the_background_one_piece_at_a_time() -> None:
    release, done = threading.Event(), []

    def first() -> None:
        assert release.wait(30)
        done.append(1)

    with BackgroundWriter() as writer:
        writer.submit(first)
        assert writer.busy
        assert not done
        release.set()
        writer.submit(lambda: done.append(2))
        assert done[0] == 1
    assert done == [1, 2]
    assert not writer.busy


def test_what_goes_wrong_in_the_background_is_raised_where_the_training_is() -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "state")

    writer = BackgroundWriter()
    writer.submit(fail)
    while writer.busy:
        time.sleep(0.001)
    with pytest.raises(OSError, match="No space left"):
        writer.check()
    writer.check()
    with pytest.raises(OSError, match="No space left"), writer:
        writer.submit(fail)
    # Another error on its way is not replaced by this one.
    with pytest.raises(KeyboardInterrupt), writer:
        writer.submit(fail)
        raise KeyboardInterrupt


def test_a_captured_state_does_not_change_with_the_training() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, TrainConfig(lr=0.1))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = capture_state({"model": model}, optimizer, {})
    kept = {name: value.clone() for name, value in state.tensors.items()}
    optimizer.step()
    assert not torch.equal(model.weight, state.tensors["model/weight"])
    assert all(torch.equal(value, kept[name]) for name, value in state.tensors.items())


def test_a_full_disk_is_one_clear_error_and_the_training_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "full", mid_epoch_seconds=1e-9)
    folder = RunFolder.of(config)
    count = 0

    def write(path: Path, state: Any) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, state)

    with monkeypatch.context() as patch:
        real = sys.modules["pipeline.training.loop.checkpoints"].write_state
        patch.setattr("pipeline.training.loop.checkpoints.write_state", write)
        with pytest.raises(StageError, match=r"state\.safetensors: No space left.*is kept"):
            run_tiny(config)
    assert load_state(folder.state) is not None
    leftover = folder.training / f".{folder.state.name}.0.tmp-1"
    leftover.write_bytes(b"of a killed process")
    run_tiny(config)
    assert not leftover.exists()
    undisturbed = tiny_config(tmp_path / "whole", mid_epoch_seconds=1e-9)
    run_tiny(undisturbed)
    assert_same_training(config, undisturbed)


def test_every_writers_form_of_a_full_disk_names_the_folder(tmp_path: Path) -> None:
    full = SafetensorError("Error while serializing: I/O error: No space left on device")
    with pytest.raises(StageError, match=f"{tmp_path}: .*No space left"), folder_faults(tmp_path):
        raise full
    with pytest.raises(OSError, match="reset"), folder_faults(tmp_path):
        raise OSError(errno.ECONNRESET, "reset by peer")  # may be better next time


def test_a_kill_in_the_middle_of_a_write_leaves_a_whole_state(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS, str(tmp_path / "state.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("whole "), done.stderr


def test_what_training_stood_still_for_is_recorded(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, mid_epoch_seconds=1e-9)
    started = time.monotonic()
    result = run_tiny(config)
    state = load_state(RunFolder.of(config).state)
    assert state is not None
    meter = state.progress["meter"]
    assert 0 < meter["save_seconds"] < time.monotonic() - started
    assert 0 < meter["step_seconds"] < result.seconds
    assert [r["kind"] for r in training_history(config)].count("epoch") == 2


def test_the_end_of_an_epoch_is_saved_before_a_long_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.loop.trainer.examine", killed)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(config)
    state = load_state(RunFolder.of(config).state)
    assert state is not None
    assert state.progress["step"] == config.train.steps_per_epoch
    run_tiny(config)
    calm = tiny_config(tmp_path / "calm")
    run_tiny(calm)
    assert_same_training(config, calm)


def test_a_state_can_be_read_by_whoever_may_read_the_rest(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run_tiny(config)
    folder = RunFolder.of(config)
    assert folder.state.stat().st_mode == folder.metrics.stat().st_mode
