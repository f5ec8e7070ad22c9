"""A trial of several processes: Ray Train inside a trial of Ray Tune, ended in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.search.trials import read_curve
from pipeline.training.epoch_gate import answer
from pipeline.training.train import fit

_POLL_SECONDS = 0.1
_END_SECONDS = 50.0
# The training that this process runs: where the process itself is ended, it is waited for.
_running: list[threading.Thread] = []


def train_many(config: RunConfig, report: Callable[[int], None]) -> None:
    """Train with Ray Train in a thread, and report each epoch from this one.

    The processes wait after each epoch until it has been reported. If the report ends this trial,
    they are told and end by themselves: Ray Train then gives its places back, which it does not
    when it is killed from outside.

    Args:
        config: of the trial.
        report: called with the number of epochs that are done; may raise SystemExit.
    """
    folder = RunFolder.of(config)
    if (folder.training / "result.json").exists():
        return
    told = len(read_curve(folder.metrics))
    (folder.training / "failure.json").unlink(missing_ok=True)
    answer(folder, told, go=True)
    failures: list[Exception] = []
    thread = threading.Thread(target=_fit, args=(config, folder, failures), daemon=True)
    _running[:] = [thread]
    thread.start()
    try:
        while thread.is_alive():
            if told < min(len(read_curve(folder.metrics)), config.train.max_epochs - 1):
                told += 1
                report(told)
                answer(folder, told, go=True)
            else:
                time.sleep(_POLL_SECONDS)
    except BaseException:
        answer(folder, told, go=False)
        wait_for_end()
        raise
    if failures:
        raise failures[0]


def wait_for_end() -> None:
    """Return when the training that this process began has ended, after some time in any case."""
    for thread in _running:
        thread.join(_END_SECONDS)


def _fit(config: RunConfig, folder: RunFolder, failures: list[Exception]) -> None:
    try:
        fit(config, folder)
    except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
        failures.append(error)
