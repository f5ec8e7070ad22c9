"""The step runner: skips the unchanged, goes on after an interruption, keeps what it replaces.

A step is known by its inputs: the options that decide its result, the hashes of the files that it
reads, and the version of its stage. Its stamp is written when it starts and again when it ends. A
step whose inputs have changed first moves its old outputs to ``previous/<step>-<key>``; when they
are wanted again (an option is changed back) they return from there.

Stamps of versions before 0.2 hold a hash of source files instead of a version. They count as made
by the code of today, so that nothing is computed again because the program was updated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lasaft.card import Licences
from lasaft.errors import StageError
from pipeline.config import RunConfig
from pipeline.config.fingerprints import digest
from pipeline.config.roles import Change, changes
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
        limits: options that end the work; with other values of them it goes on in its place.
        files: outputs that know themselves what is current: moved aside on request only.
        may_lack: an option that may be None when the work goes on, whatever it began with.
        former_fingerprint: as stamps of earlier versions have it, where it is another one.
        complete: whether the finished work lacks nothing; if it does, the next run goes on with it.
    """

    name: str
    inputs: Callable[[], Mapping[str, Any]]
    version: int
    outputs: tuple[Path, ...]
    fingerprint: Callable[[], str | None]
    run: Callable[[], str]
    limits: Callable[[], Mapping[str, Any]] = dict
    files: tuple[Path, ...] = ()
    may_lack: str = ""
    former_fingerprint: Callable[[], str | None] | None = None
    complete: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class StepResult:
    """What became of a step: ``skipped`` or done in ``seconds``, with a short note."""

    name: str
    skipped: bool
    seconds: float
    note: str


@dataclass(frozen=True)
class StepRunner:
    """Runs the steps of one workflow.

    Args:
        root: the run's folder.
        config: every option of today.
        say: takes each line for the user.
        rerun: the steps to do again although nothing has changed.
        publish: takes the folder to where it is kept, before a step works, after it, and when its
            former outputs have come back.
        recall: brings a folder below ``previous/`` from where the run is kept.
    """

    root: Path
    config: RunConfig
    say: Say
    rerun: Collection[str] = field(default_factory=frozenset)
    publish: Callable[[], None] = lambda: None
    recall: Callable[[str], None] = lambda place: None

    def run(self, steps: list[Step]) -> list[StepResult]:
        """Run ``steps`` in order and return what became of each.

        Raises:
            StageError: a step ended without its whole output.
        """
        results = []
        for number, step in enumerate(steps, 1):
            self.say(f"[{number}/{len(steps)}] {step.name} ...")
            result = self._run_step(step)
            outcome = "unchanged, skipped" if result.skipped else f"done in {result.seconds:.1f} s"
            note = f": {result.note}" if result.note else ""
            self.say(f"[{number}/{len(steps)}] {step.name} {outcome}{note}")
            results.append(result)
        return results

    def _run_step(self, step: Step) -> StepResult:
        came_back: list[str] = []

        def recall(aside: str) -> None:
            came_back.append(aside)
            self.recall(aside)

        place = StepPlace(self.root, step.name, step.outputs, recall)
        inputs = {**step.inputs(), "version": step.version}
        stamp, again = self._current(step, place, inputs), step.name in self.rerun
        if again:
            stamp = self._begun_again(step, stamp)
        record = {"key": digest(inputs), "inputs": inputs, "limits": step.limits()}
        if stamp is not None and "version" in stamp["inputs"]:
            # What the work began with stays on record, also where it may be left out now.
            record |= {"key": stamp["key"], "inputs": stamp["inputs"]}
        finished = stamp is not None and stamp["state"] == "done"
        current = step.fingerprint() if finished else None
        if stamp is not None and not finished:
            what = "a part of it failed" if "fingerprint" in stamp else "was interrupted"
            self.say(f"    {step.name}: {what}; going on from there")
        elif stamp is not None and not self._is_whole(step, stamp, current):
            self.say(f"    {step.name}: {_why_not_whole(step, stamp)}")
        elif stamp is not None and (further := self._new_limits(stamp, record["limits"])):
            self.say(f"    {step.name}: goes on with {_told(further)}")
        elif stamp is not None:
            record["fingerprint"] = current
            if not record.items() <= stamp.items():  # an earlier version wrote it
                place.write({**stamp, **record})
            if came_back:
                self.publish()
            return StepResult(step.name, True, 0.0, stamp["note"])
        record |= {"again": True} if again else {}
        place.write({**record, "state": "started"})
        self.publish()
        result = _do(step, place, record)
        self.publish()
        return result

    def _current(self, step: Step, place: StepPlace, inputs: Mapping[str, Any]) -> Stamp | None:
        """Return the stamp of work with these inputs; work with others makes room for it."""

        def is_exact(kept: Stamp) -> bool:
            return not self._all_changes(kept, inputs)

        stamp = place.settle()
        found = [] if stamp is None else self._changes(step, stamp, inputs)
        if stamp is not None and not found and place.kept(is_exact) is not None:
            found = self._all_changes(stamp, inputs)
        if stamp is not None and found:
            returns = all(change.name != "version" for change in found)
            self._put_aside(step, place, stamp, f"changed: {_told(found)}", returns=returns)
            stamp = None
        return place.arrive(is_exact) if stamp is None and step.outputs else stamp

    def _begun_again(self, step: Step, stamp: Stamp | None) -> Stamp | None:
        """Make room for a step that is done again on request; return a stamp only to go on."""
        if stamp is not None and stamp["state"] == "started" and "again" in stamp:
            return stamp  # it was begun anew on request, and then interrupted
        why = "is done again, as --rerun says"
        everything = StepPlace(self.root, step.name, (*step.outputs, *step.files))
        if stamp is not None:
            self._put_aside(step, everything, stamp, why, returns=False)
        elif (aside := everything.clear()) is not None:
            self.say(f"    {step.name}: {why}; what was there is kept in {aside}")
        return None

    def _changes(self, step: Step, stamp: Stamp, inputs: Mapping[str, Any]) -> list[Change]:
        found = self._all_changes(stamp, inputs)
        return [one for one in found if one.name != step.may_lack or one.now is not None]

    def _all_changes(self, stamp: Stamp, inputs: Mapping[str, Any]) -> list[Change]:
        return changes(_flat(stamp["inputs"]), _flat(inputs), self.config)

    def _new_limits(self, stamp: Stamp, now: Mapping[str, Any]) -> list[Change]:
        # Versions before 0.3 knew no licences.
        before = dict.fromkeys(Licences.model_fields) | _flat(stamp["inputs"])
        before |= stamp.get("limits", {})
        return [
            Change(name, before[name], value)
            for name, value in now.items()
            if name in before and before[name] != value
        ]

    def _is_whole(self, step: Step, stamp: Stamp, current: str | None) -> bool:
        """Return whether the outputs, whose fingerprint is ``current``, are those of the stamp."""
        if stamp["fingerprint"] == current:
            return True
        former = step.former_fingerprint
        return former is not None and stamp["fingerprint"] == former()

    def _put_aside(
        self, step: Step, place: StepPlace, stamp: Stamp, why: str, *, returns: bool
    ) -> None:
        aside = place.leave(stamp)
        self.say(f"    {step.name}: {why}")
        if aside is not None:
            back = "it comes back by itself when the former options and files are given again"
            self.say(
                f"    {step.name}: what was there is kept in {aside}; "
                + (back if returns else "nothing removes it")
            )


def _do(step: Step, place: StepPlace, record: Mapping[str, Any]) -> StepResult:
    start = time.monotonic()
    note = step.run()
    seconds = time.monotonic() - start
    fingerprint = step.fingerprint()
    if fingerprint is None:
        raise StageError(f"{step.name}: ended without its whole output")
    state = "done" if step.complete() else "started"
    done = {"state": state, "fingerprint": fingerprint, "seconds": seconds, "note": note}
    place.write({**record, **done})
    return StepResult(step.name, False, seconds, note)


def _why_not_whole(step: Step, stamp: Stamp) -> str:
    options = ", ".join(step.limits())
    if not options or step.former_fingerprint is None or "version" in stamp["inputs"]:
        return "its output is missing or changed since; doing it again"
    return f"its output, {options} or the way of its work has changed since; going on with it"


def _told(found: list[Change]) -> str:
    return ", ".join(f"{one.name} {_short(one.before)} -> {_short(one.now)}" for one in found)


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat.update(_flat(item) if isinstance(item, Mapping) else {name: item})
    return flat


def _short(value: Any) -> str:
    text = str(value)
    is_hash = len(text) >= 64 and all(letter in "0123456789abcdef-" for letter in text)
    return text[:8] if is_hash else text
