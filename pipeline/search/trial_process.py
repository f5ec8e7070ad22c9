"""The process of one trial: it trains alone or with workers of its own, and reports each epoch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from lasaft.errors import LasaftError, StageError
from lasaft.files import atomic_write_json
from pipeline.cluster.run_store import RunStore
from pipeline.cluster.shared_storage import UnsharedError, require_seen
from pipeline.config import RunConfig, from_json
from pipeline.config.folders import RunFolder
from pipeline.search.trials import Epoch, epoch_of, mark, read_curve, reason_of, score_of
from pipeline.training.train import fit

_SONG_SECONDS = 240.0
_TIMED_SECONDS = 12.0
_END_SECONDS = 50.0
# The thread that waits for the processes of this trial, if it has some.
_running: list[threading.Thread] = []


def run_trial(payload: dict[str, Any]) -> None:
    """Train one trial to its end; called by Ray Tune.

    Args:
        payload: ``config`` (JSON), ``folders`` (what the node must see), ``watched`` (what is
            reported), ``timed`` (whether separation is timed) and ``gpu`` (whether it has one).
    """
    from ray import tune

    # A trial of several processes needs longer than Tune's 2 s to end in order.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"
    try:
        require_seen(payload["folders"])
    except UnsharedError as error:
        tune.report({"unshared": str(error)})  # an error would be a reason to try again
        return
    config = from_json(payload["config"], "trial")
    folder, store = RunFolder.of(config).root, RunStore(RunFolder.of(config))
    store.pull(but=["tracking"])  # which is the command's
    if (folder / "failed.json").exists():
        return
    try:
        _train(config, payload)
        if payload["timed"] and not (folder / "speed.json").exists():
            atomic_write_json(folder / "speed.json", {"seconds_per_song": _seconds(config)})
            store.push_files(["speed.json"])
        _report(read_curve(RunFolder.of(config).metrics), payload["watched"])
    except (LasaftError, RuntimeError, MemoryError) as error:
        # torch's own errors, such as too little memory on the GPU, are RuntimeErrors.
        mark(RunFolder.of(config), "failed", reason_of(error))


def _train(config: RunConfig, payload: dict[str, Any]) -> None:
    if (RunFolder.of(config).training / "result.json").exists():
        return
    if config.train.processes > 1:
        _train_many(config, payload["watched"])
    else:
        _train_alone(config, payload["watched"], gpu=payload["gpu"])


def _train_alone(config: RunConfig, watched: str, *, gpu: bool) -> None:
    import torch

    from pipeline.training.loop.worker import run_session

    def on_epoch(epoch: int, values: dict[str, float]) -> None:
        # The last epoch is reported when the training has ended: nothing can cut it short.
        if epoch + 1 < config.train.max_epochs:
            _report(read_curve(RunFolder.of(config).metrics)[: epoch + 1], watched)

    device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    run_session(config, device, on_epoch)


def _train_many(config: RunConfig, watched: str) -> None:
    """Train with Ray Train, and report each epoch.

    The journal is no help here: the process that keeps it may be on another node. Where the report
    ends this trial (it raises SystemExit), the training is ended in order.
    """
    folder = RunFolder.of(config)
    curve = list(read_curve(folder.metrics))

    def heard(values: dict[str, Any]) -> None:
        epochs = values["epoch"] + 1
        if values["phase"] == "epoch" and len(curve) < epochs < config.train.max_epochs:
            curve.append(epoch_of(epochs, values, values["seconds"]))
            _report(curve, watched)

    _running[:] = [threading.current_thread()]
    fit(config, folder, heard)


def wait_for_end() -> None:
    """Wait until the training of several processes has ended, for ``_END_SECONDS`` at most."""
    for thread in _running:
        thread.join(_END_SECONDS)


def _report(curve: Sequence[Epoch], watched: str) -> None:
    """Tell Tune how good the trial is after the last epoch of ``curve``.

    Raises:
        StageError: it is no number.
    """
    from ray import tune

    score = score_of(curve, watched)
    if score is None or curve[-1].val_loss is None:
        raise StageError(f"the {watched} is not a number after epoch {len(curve)}")
    tune.report({"epoch": len(curve), "score": score, "seconds": curve[-1].seconds})


def _seconds(config: RunConfig) -> float:
    """Return the seconds that separating a song of four minutes takes here, all targets."""
    import torch

    import lasaft

    model = lasaft.load_model(RunFolder.of(config).checkpoint)
    if torch.cuda.is_available():
        model = model.cuda()
    rate = config.model.sample_rate
    source = torch.Generator().manual_seed(0)
    song = torch.randn(config.model.audio_channels, int(_TIMED_SECONDS * rate), generator=source)
    separator = lasaft.Separator(model)
    targets = config.train.target_names or config.model.sources
    times = []
    for _ in range(3):  # the first one also builds the network's fast form
        start = time.perf_counter()
        separator.separate(0.1 * song, rate, targets)
        times.append(time.perf_counter() - start)
    return min(times) * _SONG_SECONDS / _TIMED_SECONDS
