"""Independent work as Ray tasks: bounded in flight, failures named, the rest done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lasaft.errors import LasaftError, StageError
from pipeline.interrupts import raise_if_received

# One thread a task: the tasks themselves fill the cores.
_ONE_THREAD = {"env_vars": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}
_SHOWN_FAILURES = 20
# How long Ctrl-C can go unnoticed where its exception was lost.
_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True)
class Needs:
    """What one task holds while it runs.

    Args:
        memory_bytes: memory set aside by Ray's scheduler.
        cpus: CPU cores.
        gpus: GPUs, may be a fraction.
        retries: how often a task is started again when its process or node dies.
    """

    memory_bytes: int
    cpus: float = 1
    gpus: float = 0
    retries: int = 3


def run_tasks(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    names: Sequence[str],
    needs: Needs,
    on_done: Callable[[str, Any], None] = lambda name, result: None,
) -> list[Any]:
    """Call ``function`` with each of ``arguments`` in a task of its own; call while connected.

    Args:
        function: importable, its arguments and its result can be sent to other processes.
        arguments: one tuple of arguments a task.
        names: what a task is called in messages.
        needs: resources of one task.
        on_done: called here with name and result as soon as a task is done.

    Returns:
        The results, in the order of ``arguments``.

    Raises:
        StageError: some tasks failed (all are named; the others were done first), or a task needs
            more than the whole cluster has.
    """
    import ray
    from ray.exceptions import RayError

    limit = _tasks_at_once(needs)
    remote = ray.remote(function).options(
        num_cpus=needs.cpus,
        num_gpus=needs.gpus,
        memory=needs.memory_bytes,
        max_retries=needs.retries,
        runtime_env=_ONE_THREAD,
    )
    waiting = list(enumerate(arguments))[::-1]
    running: dict[Any, int] = {}
    results: list[Any] = [None] * len(arguments)
    failures: list[str] = []
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                index, values = waiting.pop()
                running[remote.remote(*values)] = index
            done, _ = ray.wait(list(running), num_returns=1, timeout=_PATIENCE_SECONDS)
            raise_if_received()
            if not done:
                continue
            index = running.pop(done[0])
            try:
                results[index] = ray.get(done[0])
            except (RayError, LasaftError) as error:
                failures.append(f"{names[index]}: {_reason(error)}")
            else:
                on_done(names[index], results[index])
    finally:
        for task in running:  # only where an exception, or Ctrl-C, leaves the loop early
            ray.cancel(task, force=True)
    if failures:
        raise StageError(_summary(failures, len(arguments)))
    return results


def _tasks_at_once(needs: Needs) -> int:
    """Return how many tasks fit in the cluster, with one more a slot waiting to start at once."""
    import ray

    resources = ray.cluster_resources()
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory_bytes}
    slots = []
    for name, amount in wanted.items():
        if amount and resources.get(name, 0) < amount:
            raise StageError(
                f"a task needs {name} {amount:g}, the whole cluster has {resources.get(name, 0):g}"
            )
        if amount:
            slots.append(int(resources[name] // amount))
    return 2 * min(slots)


def _reason(error: Exception) -> str:
    """Return the cause of a failed task in one line, without Ray's own traceback."""
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip() or type(cause).__name__
    if isinstance(cause, LasaftError):
        return text
    return f"{type(cause).__name__}: {text.splitlines()[-1]}"


def _summary(failures: Sequence[str], total: int) -> str:
    shown = sorted(failures)[:_SHOWN_FAILURES]
    more = len(failures) - len(shown)
    lines = [f"{len(failures)} of {total} failed; the others are done and kept:", *shown]
    return "\n".join(lines + ([f"and {more} more"] if more else []))
