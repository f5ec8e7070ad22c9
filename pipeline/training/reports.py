"""What a training tells Ray Train, in the processes that train; and how Ray Train passes it on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray.train
from pyarrow.fs import LocalFileSystem
from ray.train import Checkpoint, CheckpointUploadMode, UserCallback
from ray.util.queue import Queue
from torch import Tensor

from lasaft.errors import LasaftError
from pipeline.cluster.patient_files import patient_place
from pipeline.cluster.store import note_written
from pipeline.config.folders import RunFolder
from pipeline.training.loop.outlet import Outlet, Write
from pipeline.training.loop.states import newest_state
from pipeline.training.validator import Asked


class RayOutlet(Outlet):
    """Reports go to Ray Train, each state as a checkpoint that it keeps until the next one."""

    every_seconds = 1.0

    def __init__(self, folder: RunFolder, *, is_first: bool, validator: Any = None) -> None:
        super().__init__(folder)
        self._is_first, self._validator = is_first, validator
        self._state: Future[Checkpoint] | None = None  # the last one
        self._run = folder.ray_train / ray.train.get_context().get_experiment_name()
        self._unknown: list[Path] = []  # checkpoints that Ray Train has never heard of

    def fetch(self) -> None:
        """Bring what earlier attempts have left; the last one may have just saved a state."""
        reported, remote = ray.train.get_checkpoint(), self.store.remote
        if reported is not None and remote is not None:
            note_written([str(remote / self._name(self._run / Path(reported.path).name))])
        super().fetch()

    def _name(self, checkpoint: Path) -> str:
        """Return the name of the state in a checkpoint."""
        return str((checkpoint / self.folder.state.name).relative_to(self.folder.root))

    def start(self) -> Path | None:
        """Return the newest whole state, of which a dead process may have told nobody."""
        reported = ray.train.get_checkpoint()
        newest = newest_state(self.folder)
        if self._is_first:
            known = None if reported is None else Path(reported.path).name
            runs = self.folder.ray_train.glob("*/")
            others = [path for path in runs if path != self._run]  # of earlier commands
            found = self._run.glob("*/")
            self._unknown = [*others, *(path for path in found if path.name != known)]
        return newest

    def tell(self, values: dict[str, Any]) -> None:
        """Report ``values``; of the other processes Ray Train hears that they are there."""
        self._report(values if self._is_first else {})

    def save(self, values: dict[str, Any], write: Write | None) -> None:
        """Report ``values`` with a state that ``write`` makes in Ray Train's own thread."""
        if write is None:
            self.tell(values)
            return
        state = self._state = Future[Checkpoint]()

        def upload(_: Checkpoint, name: str) -> Checkpoint:
            try:
                state.set_result(self._upload(name, write))
            except BaseException as error:  # it is raised in the thread that trains as well
                state.set_exception(error)
                raise
            return state.result()

        self._report(
            values,
            checkpoint=Checkpoint(self.folder.training),  # nothing there is copied: see upload
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=False,
        )

    def _report(self, values: dict[str, Any], **checkpoint: Any) -> None:
        """Report to Ray Train, and hear whether a node has to go.

        Nodes are drained by ``ray drain-node``, an autoscaler, or the notice of a cloud; Ray Train
        starts the processes elsewhere when the node is gone, so what is true stays true.
        """
        ray.train.report(values, checkpoint_upload_mode=CheckpointUploadMode.ASYNC, **checkpoint)
        self.leaving = self.leaving or ray.train.get_preemption_info() is not None

    def _upload(self, name: str, write: Write) -> Checkpoint:
        folder, root = self._run / name, self.folder.root
        write(root / self._name(folder))
        self.store.push_new(self._name(folder))
        self.folder.state.unlink(missing_ok=True)
        while self._unknown:
            self.store.remove(str(self._unknown.pop().relative_to(root)))
        if self.store.remote is None:
            return Checkpoint(folder, LocalFileSystem())
        for copy in self._run.glob("*/"):  # Ray Train removes the objects, which is all it knows of
            if copy != folder:
                shutil.rmtree(copy)
        place = str(folder.relative_to(root))
        system, path = patient_place(self.store.remote, place, self.folder.state.name)
        return Checkpoint(path, system)

    def ask(self, weights: Mapping[str, Tensor], epoch: int) -> Asked | None:
        """Have the validator's process validate."""
        return None if self._validator is None else Asked(self._validator, weights, epoch)

    @property
    def busy(self) -> bool:
        """Whether a state is being written."""
        return self._state is not None and not self._state.done()

    def check(self) -> None:
        """Raise what went wrong with the last state, if anything."""
        if self._state is not None and not self.busy:
            self._state.result()

    def __exit__(self, kind: object, *_: object) -> None:
        if self._state is not None and kind is None:
            self._state.result()

    def drop_states(self) -> None:
        """Leave the states to whoever started Ray Train, which still counts on them."""


class Listener(UserCallback):
    """Passes on what the first process reports; ends the training where its input is at fault.

    Where Ray Train calls it, an exception ends the training in order, without another start.
    """

    def __init__(self, heard: Queue) -> None:
        self._heard = heard

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Pass the first process's report on."""
        self._heard.put(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise what a process has found to be wrong: to begin again would find it again."""
        for error in worker_exceptions.values():
            if isinstance(error, LasaftError):
                raise error
