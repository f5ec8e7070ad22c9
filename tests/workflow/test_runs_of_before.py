"""A run folder of version 0.1 goes on: nothing is computed again after an update."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lasaft.card import Licences
from lasaft.options import Option
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.config.roles import all_options, names
from pipeline.data.shards.manifest import read_manifest
from pipeline.workflow.run import Workflow, run_workflow
from pipeline.workflow.steps import Step, StepRunner
from tests.helpers.runs import config_of, unpack

# The data's hash and the score that version 0.1 gave.
_DATA_HASH = "d6dfe1c6a6c1e7917b27aba60b7773681032c959b63000d75cb51097815dfbd6"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    unpack(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kept", ["estimates/before/test/song", "estimates/excerpts/test"])
def test_kept_estimates_that_somebody_removed_are_made_again(runs: Path, kept: str) -> None:
    song = runs / "finished" / "estimates" / "before" / "test" / "song"
    song.mkdir(parents=True)
    (song / "bass.wav").write_bytes(b"RIFF")
    _outcomes(config_of(runs, "finished"), 4)
    shutil.rmtree(runs / "finished" / kept)
    with pytest.raises(AssertionError, match="evaluate was done again"):
        _outcomes(config_of(runs, "finished"), 4)


def test_a_layout_that_is_said_is_the_one_that_was_found(runs: Path) -> None:
    (runs / "finished" / "steps" / "preprocess.json").unlink()
    folder = RunFolder.of(config_of(runs, "finished"))
    for layout in (None, True):
        config = config_of(runs, "finished", musdb_is_wav=layout)
        (step,) = Workflow(config, print)._steps(folder)[:1]
        work = replace(step, run=lambda: "") if layout is None else _no_work(step)
        StepRunner(folder.root, config, print).run([work])


def _no_work(step: Step) -> Step:
    def refuse() -> str:
        raise AssertionError(f"{step.name} was done again")

    return replace(step, run=refuse)


def _outcomes(config: RunConfig, most: int, work: Callable[[Step], Step] = _no_work) -> list[str]:
    said: list[str] = []
    folder = RunFolder.of(config)
    steps = Workflow(config, said.append)._steps(folder)[:most]
    results = StepRunner(folder.root, config, said.append).run([work(step) for step in steps])
    assert all(result.skipped for result in results)
    return said


def test_a_finished_run_has_nothing_to_do(runs: Path) -> None:
    said: list[str] = []
    results = run_workflow(config_of(runs, "finished"), said.append)
    assert [result.name for result in results if not result.skipped] == []
    assert not (runs / "finished" / "previous").exists()
    # From here on its stamps are like those of today.
    assert all(result.skipped for result in run_workflow(config_of(runs, "finished"), said.append))


def test_its_shards_have_the_hash_that_they_had(runs: Path) -> None:
    assert read_manifest(runs / "finished" / "shards").hash == _DATA_HASH


def test_a_search_and_the_training_of_its_winner_are_taken_over(runs: Path) -> None:
    said = _outcomes(config_of(runs, "searched"), 3)
    assert sum("unchanged, skipped" in line for line in said) == 3


# What is said of weights stands on cards and pages, which are made again.
@pytest.mark.parametrize("name", [n for n in names("way") if n not in Licences.model_fields])
def test_how_the_work_is_done_changes_nothing_that_is_finished(runs: Path, name: str) -> None:
    tree = config_of(runs, "finished").model_dump()
    option = all_options()[name]
    tree[option.section][name] = _another(option, tree[option.section][name])
    # As though it had been checked: some of these need a GPU or an address to have an effect.
    assert len(_outcomes(RunConfig.model_validate(tree), 4)) == 8


def _another(option: Option, value: Any) -> Any:
    """Return a value of an option that is not ``value``."""
    match option.kind:
        case "bool":
            return not value
        case "text":
            return "CPU=1"
        case "choice":
            return option.choices[-1]  # the only one
        case _:
            return 1 if value != 1 else 2


def test_another_option_of_the_result_is_told_and_the_training_kept(runs: Path) -> None:
    said: list[str] = []
    config = config_of(runs, "finished", lr=0.002)
    folder = RunFolder.of(config)
    steps = Workflow(config, said.append)._steps(folder)[:2]
    with pytest.raises(AssertionError, match="train was done again"):
        StepRunner(folder.root, config, said.append).run([_no_work(step) for step in steps])
    assert "    train: changed: lr 0.001 -> 0.002" in said
    kept = next((folder.root / "previous").glob("train-*"))
    assert (kept / "checkpoint" / "weights.safetensors").exists()
    _outcomes(config_of(runs, "finished"), 4)
    assert folder.checkpoint.exists()


def test_a_changed_training_is_not_taken_over_from_its_old_stamp(runs: Path) -> None:
    with pytest.raises(AssertionError, match="train was done again"):
        _outcomes(config_of(runs, "finished", val_loss="spec_mse"), 4)


def test_what_decided_shards_before_decides_whether_they_are_taken_over(runs: Path) -> None:
    with pytest.raises(AssertionError, match="preprocess was done again"):
        _outcomes(config_of(runs, "finished", n_fft=512), 4)


def test_another_budget_of_an_old_search_is_told_as_such(runs: Path) -> None:
    said: list[str] = []
    config = config_of(runs, "searched", num_trials=1)
    steps = Workflow(config, said.append)._steps(RunFolder.of(config))[:2]
    with pytest.raises(AssertionError, match="search was done again"):
        StepRunner(runs / "searched", config, said.append).run([_no_work(one) for one in steps])
    told = (
        "search: its output, num_trials, .*seeds.* or the way of its work has changed since; going"
    )
    assert re.search(told, said[-1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lr_schedule": "cosine", "max_epochs": 7, "trial_epochs": 1}, None),
        ({"lr_schedule": "cosine", "trial_epochs": 3}, "trial_epochs 1 -> 3"),
        ({"search_seed": 5}, None),
        ({"searcher": "grid", "num_trials": 2}, None),
        ({"num_trials": 2}, "searcher None (grid) -> None (random)"),
        ({"space": "renamed.yaml"}, None),
    ],
)
def test_a_search_begins_anew_only_where_its_trials_would_be_others(
    runs: Path, options: dict[str, object], told: str | None
) -> None:
    first = {"lr_schedule": "cosine"} if "lr_schedule" in options else {}
    _stamp_anew(config_of(runs, "searched", **first))
    if "space" in options:
        options = {"space": (runs / "space.yaml").rename(runs / "renamed.yaml")}
    config, said = config_of(runs, "searched", **options), list[str]()
    folder = RunFolder.of(config)
    (step,) = Workflow(config, said.append)._steps(folder)[1:2]
    runner = StepRunner(folder.root, config, said.append)
    if told is None:
        runner.run([replace(step, run=lambda: "")])
    else:
        with pytest.raises(AssertionError, match="search was done again"):
            runner.run([_no_work(step)])
    changed = [line for line in said if "changed: " in line]
    assert changed == ([] if told is None else [f"    search: changed: {told}"])


def _stamp_anew(config: RunConfig) -> None:
    """Let the search's stamp be as the program of today writes it for ``config``."""
    folder = RunFolder.of(config)
    (step,) = Workflow(config, lambda _: None)._steps(folder)[1:2]
    (folder.steps / "search.json").unlink()
    StepRunner(folder.root, config, lambda _: None).run([replace(step, run=lambda: "")])


def test_what_is_told_of_a_skipped_step_holds_where_the_folder_is_moved(runs: Path) -> None:
    config = config_of(runs, "finished", report_audio=0)
    (*_, step) = Workflow(config, print)._steps(RunFolder.of(config))
    StepRunner(runs / "finished", config, print).run([step])
    (runs / "finished").rename(runs / "moved")
    said: list[str] = []
    moved = config.model_copy(update={"output_dir": runs / "moved"})
    (*_, step) = Workflow(moved, said.append)._steps(RunFolder.of(moved))
    StepRunner(runs / "moved", moved, said.append).run([_no_work(step)])
    assert said[-1] == "[1/1] report unchanged, skipped: report/index.html"
