"""The way out of a training: where its reports and its states go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from pipeline.cluster.run_store import STATES, TRAINED, RunStore
from pipeline.config.folders import RunFolder
from pipeline.training.loop.background import BackgroundWriter
from pipeline.training.loop.right_to_write import right_to_write
from pipeline.training.loop.states import drop_states, newest_state

if TYPE_CHECKING:
    from pipeline.training.loop.validating import Answer

# Writes a state, and whatever else has to be on the disk with it, to the file that it is given.
Write = Callable[[Path], None]


class Outlet:
    """The way out without Ray: states go into the run's folder, reports nowhere.

    All processes call its methods alike, in the same order. Use as a context manager, whose end
    awaits what is still being written.

    Attributes:
        every_seconds: how often reports are wanted while steps are taken.
        leaving: whether one of the processes may be gone soon, so that states are due often.
        right: to write to the folder; where nobody has taken it, nobody else can have it.
        store: where the run is kept.
    """

    every_seconds = math.inf
    leaving = False

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.store = RunStore(folder)
        self.right = right_to_write(folder, self.store)
        self._writer = BackgroundWriter()

    def fetch(self) -> None:
        """Bring what earlier attempts have left, where the run is kept elsewhere."""
        self.store.pull(*TRAINED)

    def share(self) -> None:
        """Take everything but states to where the run is kept."""
        self.store.push(*TRAINED, but=STATES)

    def start(self) -> Path | None:
        """Return the state to go on from, None if there is none."""
        return newest_state(self.folder)

    def tell(self, values: dict[str, Any]) -> None:
        """Report JSON-like ``values``."""

    def save(self, values: dict[str, Any], write: Write | None) -> None:
        """Report ``values`` with a state that ``write`` makes in the background.

        On all processes but the first, ``write`` is None.
        """
        if write is not None:
            self._writer.submit(lambda: self._write(write))

    def _write(self, write: Write) -> None:
        state = self.folder.state
        write(state)
        self.store.push_files([state.relative_to(self.folder.root).as_posix()])
        drop_states(self.folder, but=state)

    def ask(self, weights: Mapping[str, Tensor], epoch: int) -> Answer | None:
        """Have somebody else validate the ``weights`` of ``epoch``; None: there is nobody else."""

    def drop_states(self) -> None:
        """Remove the states of a training that has ended; the first process calls it."""
        drop_states(self.folder)
        self.store.push("training")

    @property
    def busy(self) -> bool:
        """Whether a state is being written."""
        return self._writer.busy

    def check(self) -> None:
        """Raise what went wrong with the last state, if anything."""
        self._writer.check()

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._writer.__exit__(kind)
