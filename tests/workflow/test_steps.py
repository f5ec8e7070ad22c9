"""The step runner: what is skipped, what runs again, and what a crash leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lasaft import files
from lasaft.errors import StageError
from pipeline.config import RunConfig, TrackingConfig
from pipeline.config.fingerprints import digest
from pipeline.workflow.run import run_workflow
from pipeline.workflow.stamps import StepPlace, read_stamp
from pipeline.workflow.steps import Step, StepRunner


class TwoSteps:
    """`first` writes an option to a file, `second` doubles it; both count their runs."""

    def __init__(self, root: Path) -> None:
        self.root, self.value, self.other = root, 1, 1
        self.lacks = False
        self.runs: list[str] = []
        self.said: list[str] = []

    def _fingerprint(self, name: str) -> str | None:
        path = self.root / name
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None

    def _first(self) -> str:
        self.runs.append("first")
        (self.root / "one.txt").write_text(str(self.value))
        return "wrote one"

    def _second(self) -> str:
        self.runs.append("second")
        doubled = int((self.root / "one.txt").read_text()) * 2 + self.other
        (self.root / "two.txt").write_text(str(doubled))
        return ""

    def steps(self) -> list[Step]:
        return [
            Step(
                "first",
                lambda: {"options": {"value": self.value}},
                1,
                (self.root / "one.txt",),
                lambda: self._fingerprint("one.txt"),
                self._first,
                complete=lambda: not self.lacks,
            ),
            Step(
                "second",
                lambda: {"other": self.other, "one": self._fingerprint("one.txt")},
                1,
                (self.root / "two.txt",),
                lambda: self._fingerprint("two.txt"),
                self._second,
            ),
        ]

    def run(self, *rerun: str) -> list[str]:
        self.runs.clear()
        self.said.clear()
        StepRunner(self.root, RunConfig(), self.said.append, rerun).run(self.steps())
        return list(self.runs)


@pytest.fixture
def flow(tmp_path: Path) -> TwoSteps:
    return TwoSteps(tmp_path)


def test_a_licence_that_is_stated_later_lets_a_step_go_on(flow: TwoSteps) -> None:
    def run(licence: str | None) -> list[str]:
        flow.runs.clear()
        (first, _) = flow.steps()
        first = replace(first, limits=lambda: {"weights_license": licence})
        StepRunner(flow.root, RunConfig(), flow.said.append).run([first])
        return list(flow.runs)

    flow.run()  # as before there were any
    assert run(None) == []
    assert run("MIT") == ["first"]
    assert "    first: goes on with weights_license None -> MIT" in flow.said
    assert run("MIT") == []


def test_a_second_run_skips_everything(flow: TwoSteps) -> None:
    assert flow.run() == ["first", "second"]
    assert flow.run() == []
    assert sum("unchanged, skipped" in line for line in flow.said) == 2


def test_a_changed_option_runs_exactly_what_depends_on_it(flow: TwoSteps) -> None:
    flow.run()
    flow.other = 5
    assert flow.run() == ["second"]
    assert (flow.root / "two.txt").read_text() == "7"
    assert "    second: changed: other 1 -> 5" in flow.said


def test_the_same_output_from_a_changed_input_stops_the_chain(flow: TwoSteps) -> None:
    flow.run()
    (flow.root / "steps" / "first.json").unlink()
    assert flow.run() == ["first"]


def test_an_option_changed_back_brings_the_old_output_back_without_work(flow: TwoSteps) -> None:
    flow.run()
    flow.value = 10
    assert flow.run() == ["first", "second"]
    assert (flow.root / "two.txt").read_text() == "21"
    flow.value = 1
    assert flow.run() == []
    assert (flow.root / "two.txt").read_text() == "3"


def test_a_missing_output_is_made_again(flow: TwoSteps) -> None:
    flow.run()
    (flow.root / "two.txt").unlink()
    assert flow.run() == ["second"]


def test_a_changed_output_is_made_again(flow: TwoSteps) -> None:
    flow.run()
    (flow.root / "two.txt").write_text("tampered")
    assert flow.run() == ["second"]
    assert (flow.root / "two.txt").read_text() == "3"


def test_a_step_that_raises_is_run_again_and_nothing_after_it_runs(
    flow: TwoSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise StageError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(flow, "_first", fail)
        with pytest.raises(StageError, match="disk full"):
            flow.run()
    assert flow.run() == ["first", "second"]
    assert "    first: was interrupted; going on from there" in flow.said


def test_work_that_lacks_a_part_serves_the_next_step_and_is_gone_on_with(flow: TwoSteps) -> None:
    flow.lacks = True
    assert flow.run() == ["first", "second"]
    flow.lacks = False
    assert flow.run() == ["first"]
    assert "    first: a part of it failed; going on from there" in flow.said
    assert flow.run() == []


@pytest.mark.parametrize("crash_after", range(1, 4))
@pytest.mark.parametrize("goal", ["new", "old"])
def test_a_crash_while_outputs_move_aside_loses_nothing(
    flow: TwoSteps, monkeypatch: pytest.MonkeyPatch, crash_after: int, goal: str
) -> None:
    flow.run()
    place = StepPlace(flow.root, "first", (flow.root / "one.txt",))
    stamp = place.settle()
    assert stamp is not None
    _crash_in_move(monkeypatch, crash_after, lambda: place.leave(stamp))
    flow.value = 1 if goal == "old" else 10
    runs = flow.run()
    assert runs == ([] if goal == "old" else ["first", "second"])
    assert (flow.root / "one.txt").read_text() == str(flow.value)


@pytest.mark.parametrize("crash_after", range(1, 4))
def test_a_crash_while_outputs_come_back_loses_nothing(
    flow: TwoSteps, monkeypatch: pytest.MonkeyPatch, crash_after: int
) -> None:
    flow.run()
    flow.value = 10
    flow.run()
    place = StepPlace(flow.root, "first", (flow.root / "one.txt",))
    stamp = place.settle()
    assert stamp is not None
    place.leave(stamp)
    _crash_in_move(
        monkeypatch, crash_after, lambda: place.arrive(lambda kept: kept["key"] == stamp["key"])
    )
    assert flow.run() == []
    assert (flow.root / "one.txt").read_text() == "10"


def _crash_in_move(monkeypatch: pytest.MonkeyPatch, after: int, move) -> None:
    """Let ``move`` die just before its ``after``-th rename."""
    count = 0
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == after:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            move()


def test_another_version_of_a_stage_runs_its_step_again(flow: TwoSteps) -> None:
    def run(version: int) -> list[str]:
        flow.runs.clear()
        first, second = flow.steps()
        runner = StepRunner(flow.root, RunConfig(), flow.said.append)
        runner.run([replace(first, version=version), second])
        return list(flow.runs)

    assert run(1) == ["first", "second"]
    assert run(1) == []
    assert run(2) == ["first"]


def test_what_is_put_aside_is_told_with_the_change_and_the_way_back(flow: TwoSteps) -> None:
    flow.run()
    flow.value = 10
    flow.run()
    aside = next((flow.root / "previous").glob("first-*"))
    assert "    first: changed: value 1 -> 10" in flow.said
    assert any(str(aside) in line and "former options" in line for line in flow.said)
    assert (aside / "one.txt").read_text() == "1"


def test_a_half_done_step_is_put_aside_with_a_word_and_goes_on_later(flow: TwoSteps) -> None:
    def die() -> str:
        (flow.root / "one.txt").write_text("half")
        raise KeyboardInterrupt

    whole, flow._first = flow._first, die
    with pytest.raises(KeyboardInterrupt):
        flow.run()
    flow._first, flow.value = whole, 10
    assert flow.run() == ["first", "second"]
    assert any("previous" in line for line in flow.said)
    flow.value = 1
    assert flow.run() == ["first", "second"]
    assert "    first: was interrupted; going on from there" in flow.said


def test_a_step_is_done_again_on_request_and_keeps_what_was_there(flow: TwoSteps) -> None:
    flow.run()
    assert flow.run("first") == ["first"]
    assert "    first: is done again, as --rerun says" in flow.said
    kept = next((flow.root / "previous").glob("first-*"))
    assert (kept / "one.txt").read_text() == "1"
    assert flow.run("first") == ["first"]
    assert len(list((flow.root / "previous").glob("first-*"))) == 2
    assert flow.run() == []


def test_a_step_begun_again_on_request_goes_on_after_an_interruption(flow: TwoSteps) -> None:
    def die() -> str:
        (flow.root / "one.txt").write_text("half")
        raise KeyboardInterrupt

    flow.run()
    whole, flow._first = flow._first, die
    with pytest.raises(KeyboardInterrupt):
        flow.run("first")
    flow._first = whole
    assert flow.run("first") == ["first"]
    assert "    first: was interrupted; going on from there" in flow.said
    assert len(list((flow.root / "previous").glob("first-*"))) == 1


def test_files_that_know_what_is_current_move_aside_on_request_alone(flow: TwoSteps) -> None:
    def run(value: int, *rerun: str) -> list[str]:
        flow.runs.clear()
        flow.value = value
        first = replace(flow.steps()[0], outputs=(), files=(flow.root / "one.txt",))
        StepRunner(flow.root, RunConfig(), flow.said.append, rerun).run([first])
        return list(flow.runs)

    assert run(1) == run(2) == ["first"]
    assert not (flow.root / "previous").exists()
    assert run(2, "first") == ["first"]
    kept = next((flow.root / "previous").glob("first-*"))
    assert run(1) == run(2) == ["first"]
    assert (kept / "one.txt").read_text() == "2"


def test_another_limit_goes_on_in_its_place(flow: TwoSteps) -> None:
    def run(epochs: int) -> list[str]:
        flow.runs.clear()
        flow.said.clear()
        first, second = flow.steps()
        first = replace(first, limits=lambda: {"max_epochs": epochs})
        StepRunner(flow.root, RunConfig(), flow.said.append).run([first, second])
        return list(flow.runs)

    assert run(2) == ["first", "second"]
    assert run(4) == ["first"]
    assert "    first: goes on with max_epochs 2 -> 4" in flow.said
    assert not (flow.root / "previous").exists()
    assert run(4) == []


def test_a_damaged_stamp_counts_as_none(flow: TwoSteps) -> None:
    flow.run()
    (flow.root / "steps" / "first.json").write_text("{not json")
    assert flow.run() == ["first"]


@pytest.mark.parametrize("state", ["done", "leaving", "arriving"])
def test_a_stamp_of_a_stranger_moves_nothing_out_of_the_folder(flow: TwoSteps, state: str) -> None:
    flow.run()
    file = flow.root / "steps" / "first.json"
    stamp = json.loads(file.read_text())
    stamp |= {"state": state, "key": "/../../../x"}
    file.write_text(json.dumps(stamp | {"was": stamp}))
    before = {path for path in flow.root.parent.iterdir() if path != flow.root}
    flow.run()
    assert {path for path in flow.root.parent.iterdir() if path != flow.root} == before
    assert not list((flow.root / "previous").glob("*x*"))


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_outputs_that_no_stamp_tells_of_make_room_and_stay(flow: TwoSteps) -> None:
    flow.run()
    flow.value = 10
    flow.run()
    (flow.root / "steps" / "first.json").write_text("")
    flow.value = 1
    flow.run()
    assert (flow.root / "one.txt").read_text() == "1"
    kept = [file.read_text() for file in (flow.root / "previous").glob("first-unknown*/one.txt")]
    assert kept == ["10"]


def test_a_rerun_without_a_stamp_begins_anew_too(flow: TwoSteps) -> None:
    flow.run()
    (flow.root / "steps" / "first.json").unlink()
    (flow.root / "one.txt").write_text("of before")
    assert flow.run("first") == ["first"]
    assert (flow.root / "previous" / "first-unknown" / "one.txt").read_text() == "of before"


def test_the_exact_former_outputs_come_back_before_those_that_may_go_on(flow: TwoSteps) -> None:
    def run(start: str | None) -> list[str]:
        flow.runs.clear()
        first = flow.steps()[0]
        first = replace(
            first,
            inputs=lambda: {"value": flow.value, "resume_from_checkpoint": start},
            may_lack="resume_from_checkpoint",
        )
        StepRunner(flow.root, RunConfig(), flow.said.append).run([first])
        return list(flow.runs)

    assert run(None) == ["first"]
    flow.value = 2
    assert run("init") == ["first"]
    assert run(None) == []  # it may be left out when the work goes on
    flow.value = 1
    assert run(None) == []  # the first one came back
    assert (flow.root / "one.txt").read_text() == "1"


def test_what_work_began_with_stays_on_record_where_it_is_left_out(flow: TwoSteps) -> None:
    def run(start: str | None, epochs: int) -> list[str]:
        flow.runs.clear()
        first = replace(
            flow.steps()[0],
            inputs=lambda: {"resume_from_checkpoint": start},
            limits=lambda: {"max_epochs": epochs},
            may_lack="resume_from_checkpoint",
        )
        StepRunner(flow.root, RunConfig(), flow.said.append).run([first])
        return list(flow.runs)

    assert run("init", 2) == ["first"]
    assert run(None, 2) == []
    assert run(None, 3) == ["first"]  # goes on
    assert run("init", 3) == []
    assert not (flow.root / "previous").exists()


@pytest.mark.parametrize(
    "damage", [{"state": "leaving"}, {"state": "done", "note": None}, {"inputs": 3}]
)
def test_a_stamp_that_lacks_what_its_state_needs_counts_as_none(
    flow: TwoSteps, damage: dict[str, object]
) -> None:
    flow.run()
    file = flow.root / "steps" / "first.json"
    stamp = json.loads(file.read_text()) | damage
    file.write_text(json.dumps({k: v for k, v in stamp.items() if v is not None}))
    assert "first" in flow.run()


def test_no_password_of_an_address_is_written_to_the_run_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepRunner, "run", lambda self, steps: [])
    store = TrackingConfig(tracking_uri="http://ann:geheim@mlflow.example/x")
    run_workflow(RunConfig(output_dir=tmp_path, tracking=store), print)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "http://mlflow.example/x" in written
    assert "geheim" not in written


def test_a_stamp_that_cannot_be_read_now_does_not_count_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: Path) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Path, "read_bytes", stale)
    monkeypatch.setattr(files, "AWAY_SECONDS", [0.01])
    with pytest.raises(OSError, match=r"songs\.json"):
        read_stamp(tmp_path / "songs.json")
