"""Independent work as Ray tasks: bounded in flight, failures named, the rest done."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lasaft.errors import LasaftError, StageError
from pipeline.cluster.interrupts import raise_if_received
from pipeline.cluster.memory import out_of_memory
from pipeline.cluster.nodes import Lack, patience_seconds
from pipeline.cluster.parcels import Parcel
from pipeline.cluster.resources import in_words, quantity
from pipeline.cluster.shared_storage import Seen, UnsharedError, require_seen, seen_folders
from pipeline.cluster.store import note_written, written_lately
from pipeline.cluster.stragglers import Patience, Stopwatch
from pipeline.config import RunConfig

# One thread a task: the tasks themselves fill the cores.
_ONE_THREAD = {"env_vars": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}
_SHOWN_FAILURES = 20
_MEMORY_TRIES = 3
# How often late tasks are looked for, and how long Ctrl-C can go unnoticed where its exception was
# lost.
_LOOK_SECONDS = 2.0
# So many tasks at least wait for places where an autoscaler sees them and brings nodes.
_ASKED_AT_ONCE = 100


@dataclass(frozen=True)
class Needs:
    """What one task holds while it runs."""

    memory_bytes: int  # memory set aside by Ray's scheduler
    cpus: float = 1  # CPU cores
    gpus: float = 0  # GPUs, or a share of one
    patience: float = 0.0  # seconds to wait for a node where none has so much
    folders: tuple[Seen, ...] = ()  # what its node must see

    @classmethod
    def of(cls, config: RunConfig, memory_bytes: float = 0.0) -> Needs:
        """Return the needs of a run's tasks, with ``task_memory`` or more."""
        return cls(
            int(max(config.cluster.task_memory * 1e9, memory_bytes)),
            patience=patience_seconds(config.cluster),
            folders=seen_folders(config),
        )

    @property
    def lack(self) -> Lack:
        """What says that no node has room for a task."""
        each = {"CPU": self.cpus, "memory": float(self.memory_bytes)}
        each |= {"GPU": self.gpus} if self.gpus else {}
        allowed = "a smaller task_memory, or a larger node"
        return Lack(f"a task needs {in_words(each)}", each, 1, self.patience, allowed)


def run_tasks(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    names: Sequence[str],
    needs: Needs,
    parcels: Sequence[Parcel | None] | None = None,
    sizes: Sequence[float] | None = None,
    patience: Patience | None = None,
    on_done: Callable[[str, Any], None] = lambda name, result: None,
    failures: dict[int, str] | None = None,
) -> list[Any]:
    """Call ``function`` with each of ``arguments`` in a task of its own; call while connected.

    Args:
        function: importable, its arguments and its result can be sent to other processes.
        parcels: what goes with each task to its node, where it does not see the run's folder.
        sizes: how much work each task is, in any unit. Given, a task that runs far longer than
            the others of its size is begun again on another worker; the first result counts and
            the other attempt is ended. Two attempts may run side by side for a while, so what
            they write must appear by rename.
        on_done: called here with name and result as soon as a task is done, once a task.
        failures: takes why each task failed, by its number; its result is None then. Given, only
            that all have failed is an error.

    Returns:
        The results, in the order of ``arguments``.

    Raises:
        StageError: some tasks failed or were stuck (all are named; the others were done first);
            or a node does not see the folders of the run.
        ConfigError: no node has room for a task, and none came.
    """
    fan = _Fan(
        function, arguments, names=names, needs=needs, parcels=parcels or [None] * len(arguments),
        sizes=sizes, patience=patience or Patience(),
    )  # fmt: skip
    try:
        results = fan.run(on_done)
    finally:
        fan.end()  # only where an exception, or Ctrl-C, leaves the loop early
    if fan.failures and (failures is None or len(fan.failures) == len(arguments)):
        told = [f"{names[index]}: {reason}" for index, reason in fan.failures.items()]
        raise StageError(_summary(told, len(arguments)))
    if failures is not None:
        failures.update(fan.failures)
    return results


def _announced(
    folders: tuple[Seen, ...],
    parcel: Parcel | None,
    function: Callable[..., Any],
    *arguments: Any,
) -> Iterator[Any]:
    """Say that the task runs now, then do it: waiting for a place is no slowness."""
    require_seen(folders)
    yield None
    done = (function(*arguments), {}) if parcel is None else parcel.do(function, *arguments)
    yield *done, written_lately()


class _Fan:
    """The tasks of one fan-out; an attempt is the generator that Ray gives for a call."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        *,
        names: Sequence[str],
        needs: Needs,
        parcels: Sequence[Parcel | None],
        sizes: Sequence[float] | None,
        patience: Patience,
    ) -> None:
        import ray

        self._needs, self._lack = needs, needs.lack
        self._remote = ray.remote(_announced).options(
            name=function.__name__,  # in Ray's dashboard, and of the process
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory_bytes,
            runtime_env=_ONE_THREAD,
            num_returns="streaming",
        )
        self._function, self._arguments, self._names = function, arguments, names
        self._parcels = parcels
        self._watch = Stopwatch(sizes or [1.0] * len(arguments), patience)
        self._watched = sizes is not None
        self._running: dict[Any, int] = {}
        self._results: list[Any] = [None] * len(arguments)
        self.failures: dict[int, str] = {}
        self._waiting = list(range(len(arguments)))[::-1]
        self._lacked = Counter[int]()  # how often each ran out of memory
        self._next_look = 0.0

    def run(self, on_done: Callable[[str, Any], None]) -> list[Any]:
        """Return all results in order."""
        import ray

        while self._waiting or self._running:
            self._lack.look()
            # A task more for each place waits, to start at once.
            limit = max(2 * self._lack.found, _ASKED_AT_ONCE if self._needs.patience else 0)
            while self._waiting and len(self._running) < limit:
                self._begin(self._waiting.pop())
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_LOOK_SECONDS)
            raise_if_received()
            for attempt in ready:
                self._read(attempt, on_done)
            if self._watched and time.monotonic() > self._next_look:
                self._look_after_late_ones()
                self._next_look = time.monotonic() + _LOOK_SECONDS
        return self._results

    def end(self) -> None:
        """End every attempt that still runs."""
        for attempt in list(self._running):
            self._cancel(attempt)

    def _begin(self, index: int) -> None:
        arguments = (self._parcels[index], self._function, *self._arguments[index])
        attempt = self._remote.remote(self._needs.folders, *arguments)
        self._running[attempt] = index
        self._watch.begun(index, attempt)

    def _read(self, attempt: Any, on_done: Callable[[str, Any], None]) -> None:
        """Take what an attempt has to say: that it has started, its result, or its error."""
        import ray
        from ray.exceptions import RayError

        index = self._running[attempt]
        try:
            answer = ray.get(next(attempt))
        except (RayError, LasaftError) as error:
            if isinstance(cause := _cause(error), UnsharedError):
                raise cause from error
            del self._running[attempt]
            if not self._watch.dropped(index, attempt):
                self._failed(index, error)
            return
        if not self._watch.has_started(index, attempt):  # its first word says so
            self._watch.started(index, attempt)
            return
        del self._running[attempt]
        for other in self._watch.finished(index, attempt):
            self._cancel(other)
        self._results[index], changed, written = answer
        note_written(written)
        if (parcel := self._parcels[index]) is not None:
            parcel.keep(changed)
        on_done(self._names[index], self._results[index])

    def _failed(self, index: int, error: Exception) -> None:
        """Note a failure; what lacked memory is tried again when all others have begun."""
        lack = out_of_memory(error)
        if lack is None:
            self.failures[index] = _reason(error)
            return
        self._lacked[index] += 1
        if self._lacked[index] < _MEMORY_TRIES:
            self._waiting.insert(0, index)
            return
        aside = quantity("memory", self._needs.memory_bytes)
        self.failures[index] = (
            f"{lack}; {aside} were set aside for it; tried {_MEMORY_TRIES} "
            "times; allowed: a larger task_memory (fewer run side by side then), or a node with "
            "more memory"
        )

    def _look_after_late_ones(self) -> None:
        for index, step, attempt in self._watch.due():
            if step == "begin":
                self._begin(index)
                continue
            left = self._watch.dropped(index, attempt)
            self._cancel(attempt)
            if step == "give up":
                for other in left:
                    self._watch.dropped(index, other)
                    self._cancel(other)
                limit = self._watch.limit_seconds(index)
                self.failures[index] = (
                    f"no result, though it was begun again each time that {limit:.0f} s had "
                    "passed, far longer than the other tasks took"
                )

    def _cancel(self, attempt: Any) -> None:
        import ray

        self._running.pop(attempt, None)
        ray.cancel(attempt, force=True)


def _cause(error: BaseException) -> BaseException:
    """Return the error of a task itself, without those that Ray puts around it."""
    while getattr(error, "cause", None) is not None:  # of a task that asked an actor, twice
        error = error.cause  # pyright: ignore[reportAttributeAccessIssue]
    return error


def _reason(error: Exception) -> str:
    """Return the cause of a failed task in one line, without Ray's own traceback."""
    cause = _cause(error)
    text = str(cause).strip() or type(cause).__name__
    if isinstance(cause, LasaftError):
        return text
    return f"{type(cause).__name__}: {text.splitlines()[-1]}"


def _summary(failures: Sequence[str], total: int) -> str:
    shown = sorted(failures)[:_SHOWN_FAILURES]
    more = len(failures) - len(shown)
    lines = [f"{len(failures)} of {total} failed; the others are done and kept:", *shown]
    return "\n".join(lines + ([f"and {more} more"] if more else []))
