"""How the processes of one training ask a search after each epoch whether they may go on.

Files, because the search's process and the training's may be on different nodes, and either may be
killed: what is asked and answered outlives both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from lasaft.files import atomic_write_json
from pipeline.config.folders import RunFolder
from pipeline.training.loop.ranks import Ranks

_POLL_SECONDS = 0.05


class EndedEarlyError(Exception):
    """The search wants this training no longer."""


def answer(folder: RunFolder, epochs: int, *, go: bool) -> None:
    """Let the training in ``folder`` go on behind so many epochs, or end it there."""
    atomic_write_json(folder.training / "answer.json", {"epochs": epochs, "go": go})


def asker(
    folder: RunFolder, ranks: Ranks, max_epochs: int
) -> Callable[[int, dict[str, float]], None]:
    """Return what each process calls after an epoch: it waits for the answer, if anyone answers.

    The returned function raises :class:`EndedEarlyError` on all processes if the answer is no.
    """
    file = folder.training / "answer.json"
    answered = ranks.agree(file.exists())

    def ask(epoch: int, values: dict[str, float]) -> None:
        if not answered or epoch + 1 >= max_epochs:
            return
        go = _wait(file, epoch) if ranks.is_first else True
        if not ranks.agree(go):
            raise EndedEarlyError

    return ask


def _wait(file: Path, epoch: int) -> bool:
    while True:
        found = json.loads(file.read_bytes())
        if not found["go"] or found["epochs"] > epoch:
            return found["go"]
        time.sleep(_POLL_SECONDS)
