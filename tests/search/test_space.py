"""Search spaces: what a file may say, and what every wrong value, key or condition is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import parse
from lasaft.errors import ConfigError
from pipeline.search.space import RANGES
from pipeline.search.space_reader import GRAMMAR, SPACES, read_space
from tests.helpers import ROOT


def _file(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def _problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_space(_file(folder, text))
    return [str(problem) for problem in caught.value.problems]


def _refused(folder: Path, text: str, *words: str) -> list[str]:
    """The problems that the command line tells, the shards that are missing here left out."""
    with pytest.raises(ConfigError) as caught:
        parse(["--output_dir", str(folder), "--space", _file(folder, text), *words], "tune")
    return [line for line in map(str, caught.value.problems) if not line.startswith("shards_dir")]


@pytest.mark.parametrize("name", SPACES.names())
def test_the_spaces_that_come_along_are_whole(name: str, tmp_path: Path) -> None:
    assert read_space(name).dimensions
    with pytest.raises(ConfigError) as caught:
        parse(["--output_dir", str(tmp_path), "--space", name], "tune")
    assert [line.partition(":")[0] for line in map(str, caught.value.problems)] == ["shards_dir"]


def test_the_grammar_in_help_and_guide_is_a_space(tmp_path: Path) -> None:
    space = read_space(_file(tmp_path, GRAMMAR))
    assert {one.kind for one in space.dimensions} == {"choices", *RANGES}
    networks = "options:\n  model" + GRAMMAR.partition("# model")[2].partition("\n")[0]
    assert read_space(_file(tmp_path, networks)).dimensions[0].kind == "choices"
    assert GRAMMAR in str(parse(["--help", "spaces"], "tune").help)
    assert GRAMMAR in (ROOT / "docs" / "guide.md").read_text("utf-8")


def test_table_1_is_the_papers_six_networks_and_lightsaft() -> None:
    space = read_space("paper_table1")
    assert space.is_grid
    assert len(space.dimensions[0].choices) == 7


def test_values_get_the_types_of_their_options(tmp_path: Path) -> None:
    space = read_space(
        _file(
            tmp_path,
            "options:\n  lr: {log: [1e-4, 0.1]}\n  pocm_norm: [None, batch_norm]\n"
            "  t_down_layers: [[0, 1], null]\n  n_blocks: {integer: [3, 9], step: 2}\n"
            "  auto_lr_schedule: [yes_no]\n".replace("yes_no", "True, false"),
        )
    )
    kinds = {
        one.name: (one.kind, one.choices or (one.low, one.high, one.step))
        for one in space.dimensions
    }
    assert kinds == {
        "lr": ("log", (1e-4, 0.1, 1)),
        "pocm_norm": ("choices", (None, "batch_norm")),
        "t_down_layers": ("choices", ((0, 1), None)),
        "n_blocks": ("integer", (3, 9, 2)),
        "auto_lr_schedule": ("choices", (True, False)),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("options: {blok: [tfc]}", "blok: no such option; did you mean block"),
        ("options: {block: [tfc, tfc_lassaft]}", "block: got 'tfc_lassaft', allowed: tfc"),
        ("options: {lr: [0.1, 20]}", "lr: got '20', allowed: a number above 0, up to 10"),
        ("options: {lr: [0.1, .nan]}", "lr: got '.nan', allowed: a number"),
        ("options: {lr: []}", "lr: got [], allowed: a list of one value or more"),
        ("options: {lr: 0.1}", "lr: got '0.1', allowed: a list of one value or more, or a range"),
        ("options: {lr: {log: [0, 1]}}", "lr: got '0', allowed: a number above 0"),
        ("options: {lr: {log: [1, 0.1]}}", "allowed: a lower and a higher end above 0"),
        ("options: {lr: {uniform: [1]}}", "allowed: two ends, such as [1, 10]"),
        ("options: {lr: {uniform: [0.1, 1], step: 2}}", "lr: got step '2', allowed: with integer"),
        ("options: {lr: {unifrom: [0.1, 1]}}", "unifrom: no such key in lr, allowed: choices"),
        ("options: {lr: {}}", "lr: got neither values nor a range"),
        ("options: {dk: {uniform: [1, 9]}}", "dk: got uniform, allowed: integer, log or choices"),
        ("options: {block: {integer: [1, 2]}}", "block: got a range (integer), allowed: choices"),
        ("options: {dk: [4, 4]}", "dk: a choice is there twice"),
        ("options: {dk: [4], model.dk: [8]}", "an option is there twice"),
        ("options: {n_fft: [512]}", "n_fft: cannot be searched, because the shards fix it"),
        ("options: {max_epochs: [5]}", "max_epochs: cannot be searched, because the search gives"),
        ("options: {seed: [1, 2]}", "seed: cannot be searched, because seeds are for repeats"),
        ("options: {world_size: [1, 2]}", "world_size: cannot be searched, because another value"),
        ("options: {model: [CUNET_TFC_FILM]}",
         "model: got 'CUNET_TFC_FILM', allowed: CUNET_TFC_FiLM"),
        ("options: {model: [lasaft_net_large]}", "(it sets n_fft, which the shards fix)"),
        ("options: {dk: {choices: [4], when: {blck: tfc}}}",
         "when: blck: no such option; did you mean block"),
        ("options: {dk: {choices: [4], when: {block: tcf}}}", "block: got 'tcf', allowed: tfc"),
        ("options: {dk: {choices: [4], when: [block]}}",
         "dk: when: got ['block'], allowed: options"),
        ("options: {dk: {choices: [4], when: {dk: 4}}}", "dk: when: names itself"),
        ("options: {block: [tfc], dk: {choices: [4], when: {block: tfc_lasaft}}}",
         "dk: when block: tfc_lasaft: the space has no such value of it"),
        ("options: {dk: {choices: [4], when: {num_tdfs: 2}}, "
         "num_tdfs: {choices: [2], when: {dk: 4}}}",
         "when: dk, num_tdfs wait for each other"),
        ("options: {dk: [4]}\nconstraints: {odd: [lr]}",
         "odd: got 'lr', allowed: options that are whole"),
        ("options: {dk: [4]}\nconstraints: {max_parameters: many}", "max_parameters: got 'many'"),
        ("options: {dk: [4]}\nconstraints: {max_parameter: 9}", "max_parameter: no such key"),
        ("options: {dk: [4]}\nconstraints: {width: dk}", "width: has no effect without match"),
        ("options: {dk: [4]}\nconstraints: {match_parameters: 9, width: dk}",
         "dk is searched itself"),
        ("options: {dk: [4]}\nconstraints: {match_parameters: 9, width: lr}", "width: got 'lr'"),
        ("options: {dk: [4]}\nconstraints: {max_parameters: 2, min_parameters: 3}",
         "min_parameters: got 3, allowed: at most max_parameters (2)"),
        ("options: {dk: [4]}\nconstraints: {match_parameters: 9, max_parameters: 8}",
         "match_parameters: got 9, allowed: from min_parameters to max_parameters"),
        ("options: {model: [CUNET_TFC_FiLM], block: [tfc, tdf]}",
         "block: is searched, and model too, whose networks set it"),
        ("options: {}", "options: got nothing"),
        ("dk: [4]", "dk: no such key in the file, allowed: options, constraints"),
        ("[dk]", "the file: must be a mapping"),
        ("", "the file: must be a mapping"),
        ("options: {dk: [4]\n", "is no plain YAML"),
        ("options: {dk: !!python/name:os.system [4]}",
         "the tag tag:yaml.org,2002:python/name:os.system is refused"),
        ("options: {dk: [!secret 4]}", "the tag !secret is refused"),
        ("a: &a [4]\noptions: {dk: *a}", "anchors"),
        ("options:\n  dk: [4]\n  dk: [8]\n", "line 3: dk: is given twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_space_is_told(tmp_path: Path, text: str, told: str) -> None:
    problems = _problems(tmp_path, text)
    assert any(told in line for line in problems), problems
    assert all("mine.yaml" in line for line in problems)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    assert len(_problems(tmp_path, "options: {lr: [20], blok: [tfc], dk: [], n_fft: [512]}")) == 4


def test_a_space_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match=r"got 'papr_table1'.*did you mean paper_table1"):
        read_space("papr_table1")
    with pytest.raises(ConfigError, match="is a folder"):
        read_space("/")


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("options: {n_blocks: [4, 5]}", [], "n_blocks 4 is in no valid trial: n_blocks: got 4"),
        ("options: {dk: [4, 8]}", ["--block", "tfc"],
         "dk 4 is in no valid trial: it has no effect"),
        ("options: {block: [tfc_tdf, tfc_lasaft], dk: {choices: [4], when: {block: tfc_tdf}}}", [],
         "dk 4 is in no valid trial: it has no effect"),
        ("options: {num_frame: [100, 64]}", [], "num_frame 100 is in no valid trial"),
        ("options: {lr: {log: [0.001, 0.1]}}", ["--searcher", "grid"], "lr is a range (log)"),
        ("options: {dk: [4, 8]}", ["--dk", "16"], "dk: has no effect, because the space mine says"),
        ("options: {block: [tfc, tfc_tdf]}", ["--dk", "16"],
         "dk: has no effect, because no trial of the space mine uses it"),
        ("options: {dk: [4, 8]}\nconstraints: {match_parameters: 1e5}",
         ["--internal_channels", "8"], "internal_channels: has no effect, because the space mine"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_told_before_anything_starts(
    tmp_path: Path, text: str, words: list[str], told: str
) -> None:
    assert any(told in line for line in _refused(tmp_path, text, *words))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--objectives", "sdx"], "objectives: got 'sdx', allowed: sdr, val_loss, parameters"),
        (["--objectives", "parameters"], "allowed: sdr or val_loss first, each once"),
        (["--objectives", "sdr,sdr"], "allowed: sdr or val_loss first, each once"),
        (["--num_trials", "0"], "num_trials: got '0', allowed: a whole number from 1 to 9999"),
        (["--max_hours", "0"], "max_hours: got '0', allowed: a number above 0"),
        (["--total_epochs", "0"], "total_epochs: got '0'"),
        (["--max_gpu_hours", "1"], "max_gpu_hours: got 1.0, allowed: only where trials have GPUs"),
        (["--scheduler", "pbt"], "scheduler: got 'pbt', allowed: none, asha, median"),
        (["--perturb_epochs", "2"], "perturb_epochs: no such option"),
        (["--grace_epochs", "2"], "grace_epochs: has no effect, because scheduler none"),
        (["--scheduler", "asha", "--trial_epochs", "1"],
         "grace_epochs: got 1, allowed with scheduler asha: fewer than the epochs of a trial, 1"),
        (["--top_settings", "2"], "top_settings: has no effect, because seeds is 0"),
        (["--space", "nothing"], "space: got 'nothing', allowed: a YAML file, or conditioning"),
    ],
)  # fmt: skip
def test_options_of_a_search_that_do_not_fit_are_told(
    tmp_path: Path, words: list[str], told: str
) -> None:
    problems = _refused(tmp_path, "options: {lr: [0.1, 0.2]}", *words)
    assert any(told in line for line in problems), problems


def test_a_search_without_optuna_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.search.problems.importlib.util.find_spec", lambda name: None)
    problems = _refused(tmp_path, "options: {lr: [0.1]}", "--searcher", "optuna")
    assert any("optuna, which is not installed" in line for line in problems)


def test_a_search_without_a_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="space: got None, allowed: conditioning, paper_table1"):
        parse(["--output_dir", str(tmp_path)], "tune")


def test_an_option_that_matters_only_with_searched_ones_may_be_given(tmp_path: Path) -> None:
    text = "options: {block: [tfc, tfc_lasaft]}"
    preset = tmp_path / "base.yaml"
    preset.write_text("model: {block: tfc}")
    assert _refused(tmp_path, text, "--preset", str(preset), "--dk", "16") == []
