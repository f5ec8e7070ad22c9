"""The step runner: skips the unchanged, goes on after an interruption, keeps what it replaces.

A step is named by the hash of its inputs: the options that it reads, the hashes of the files that
it reads, and the version of the stage. Its stamp is written when it starts and again
when it ends. A step whose inputs changed first moves its old outputs to ``previous/<step>-<key>``;
if they are wanted again (an option is changed back) they return from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lasaft.errors import StageError
from pipeline.cluster import locks
from pipeline.config.fingerprints import digest
from pipeline.workflow.stamps import Stamp, StepPlace

Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One step of a workflow.

    Args:
        name: one word; also the name of its stamp.
        inputs: what the result depends on, as JSON values; called when all steps before are done.
        version: of the stage, raised by whoever changes what it makes.
        outputs: files and folders that the step makes, all below the workflow's root.
        fingerprint: a hash of the finished outputs, or None if they are not whole.
        run: does the work (and goes on from what an interrupted run left); returns a short note.
    """

    name: str
    inputs: Callable[[], Mapping[str, Any]]
    version: int
    outputs: tuple[Path, ...]
    fingerprint: Callable[[], str | None]
    run: Callable[[], str]


@dataclass(frozen=True)
class StepResult:
    """What became of a step: ``skipped`` or done in ``seconds``, with a short note."""

    name: str
    skipped: bool
    seconds: float
    note: str


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, so that two runs never write it at the same time.

    Raises:
        StageError: another process holds it.
    """
    busy = StageError(
        f"output_dir: {root} is in use by another running command; wait for it, stop it, or name "
        "another output_dir"
    )
    with locks.alone(root / ".lock", busy):
        yield


def run_steps(root: Path, steps: list[Step], say: Say) -> list[StepResult]:
    """Run ``steps`` in order below ``root`` and return what became of each.

    Raises:
        StageError: a step ended without its whole output.
    """
    results = []
    for number, step in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {step.name} ...")
        result = _run_step(root, step, say)
        outcome = "unchanged, skipped" if result.skipped else f"done in {result.seconds:.1f} s"
        note = f": {result.note}" if result.note else ""
        say(f"[{number}/{len(steps)}] {step.name} {outcome}{note}")
        results.append(result)
    return results


def _run_step(root: Path, step: Step, say: Say) -> StepResult:
    place = StepPlace(root, step.name, step.outputs)
    inputs = {**step.inputs(), "version": step.version}
    key = digest(inputs)
    stamp = place.settle()
    if stamp is not None and stamp["key"] != key:
        _say_changes(step, stamp, inputs, say)
        place.leave(stamp)
        stamp = None
    stamp = stamp or place.arrive(key)
    if stamp is not None and stamp["state"] == "done":
        if step.fingerprint() == stamp["fingerprint"]:
            return StepResult(step.name, True, 0.0, stamp["note"])
        say(f"    {step.name}: its output is missing or changed since; doing it again")
    elif stamp is not None:
        say(f"    {step.name}: was interrupted; going on from there")
    return _do(step, place, {"key": key, "state": "started", "inputs": inputs})


def _do(step: Step, place: StepPlace, record: Stamp) -> StepResult:
    place.write(record)
    start = time.monotonic()
    note = step.run()
    seconds = time.monotonic() - start
    fingerprint = step.fingerprint()
    if fingerprint is None:
        raise StageError(f"{step.name}: ended without its whole output")
    done = {"state": "done", "fingerprint": fingerprint, "seconds": seconds, "note": note}
    place.write({**record, **done})
    return StepResult(step.name, False, seconds, note)


def _say_changes(step: Step, stamp: Mapping[str, Any], inputs: Mapping[str, Any], say: Say) -> None:
    old, new = _flat(stamp["inputs"]), _flat(inputs)
    changed = [
        f"{name} {_short(old.get(name))} -> {_short(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    say(f"    {step.name}: changed: {', '.join(changed)}")


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat.update(_flat(item) if isinstance(item, Mapping) else {name: item})
    return flat


def _short(value: Any) -> str:
    text = str(value)
    is_hash = len(text) >= 64 and all(letter in "0123456789abcdef-" for letter in text)
    return text[:8] if is_hash else text
