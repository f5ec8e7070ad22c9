"""The command line: every way to write an option, and all problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli import parse
from jobs.cli.job_table import JOBS
from lasaft.config import VARIANTS
from lasaft.errors import ConfigError
from pipeline.config import DataConfig, from_json, to_json
from pipeline.config.command_line import command_line
from pipeline.config.roles import all_options
from tests.helpers.commands import own_preset, problems_of, run_config


@pytest.mark.parametrize(
    "words",
    [
        ["--n_fft", "4096"],
        ["--n-fft", "4096"],
        ["--n_fft=4096"],
        ["--n-fft=4096"],
        ["n_fft=4096"],
        ["n-fft=4096"],
        ["--model.n_fft", "4096"],
        ["--model.n-fft=4096"],
        ["model.n_fft=4096"],
        ["--n_fft", "1024", "--n_fft", "4096"],
    ],
    ids=" ".join,
)
def test_all_ways_to_write_an_option_are_the_same(songs: str, words: list[str]) -> None:
    assert run_config(songs, *words).model.n_fft == 4096


@pytest.mark.parametrize(
    ("text", "value"),
    [("True", True), ("true", True), ("1", True), ("False", False), ("false", False), ("0", False)],
)
def test_booleans_are_what_they_say(songs: str, text: str, value: bool) -> None:
    assert run_config(songs, "--musdb_is_wav", text).data.musdb_is_wav is value


@pytest.mark.parametrize("text", ["yes", "no", "on", "TRUE", "2", "t"])
def test_nothing_else_is_a_boolean(songs: str, text: str) -> None:
    assert problems_of("--musdb_root", songs, "--pin_memory", text) == [
        f"pin_memory: got {text!r}, allowed: True or False"
    ]


@pytest.mark.parametrize("text", ["None", "none", "null"])
def test_none_can_be_said_where_it_is_allowed(songs: str, text: str) -> None:
    assert run_config(songs, "--bn_factor", text).model.bn_factor is None
    assert "bn_factor" not in str(problems_of("--musdb_root", songs, "--n_blocks", text))


def test_none_is_a_word_where_it_is_a_choice(songs: str) -> None:
    assert run_config(songs, "--save_estimates", "none").evaluate.save_estimates == "none"


@pytest.mark.parametrize("text", ["0,1", "[0,1]", "(0, 1)", "[0, 1]"])
def test_lists_of_numbers(songs: str, text: str) -> None:
    assert run_config(songs, "--t_down_layers", text).model.t_down_layers == (0, 1)


@pytest.mark.parametrize("text", ["vocals,bass", "[vocals, bass]", "['vocals', \"bass\"]"])
def test_lists_of_names(songs: str, text: str) -> None:
    assert run_config(songs, "--target_names", text).train.target_names == ("vocals", "bass")


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("n_fft", "2048.0", "a whole number from 16 to 65536"),
        ("n_fft", "2_048", "a whole number from 16 to 65536"),
        ("n_fft", "", "a whole number from 16 to 65536"),
        ("n_fft", "9" * 5000, "a whole number from 16 to 65536"),
        ("n_fft", "\u0662\u0660\u0664\u0668", "a whole number from 16 to 65536"),
        ("lr", "nan", "a number above 0, up to 10"),
        ("lr", "inf", "a number above 0, up to 10"),
        ("lr", "0", "a number above 0, up to 10"),
        ("lr", "1e-3 5", "a number above 0, up to 10"),
        ("gain_db", "-3", "a number from 0 to 40"),
        ("batch_size", "-1", "a whole number of at least 1"),
        ("output_dir", "", "a path, or an address (s3://bucket/folder)"),
        ("run_id", "", "a text, or None"),
        ("t_down_layers", "0,,1", "whole numbers with commas between, such as 0,1, or None"),
        ("betas", "0.9,", "two numbers from 0 to 0.99999 with a comma between, such as 0.9,0.999"),
        ("target_names", "vocals,", "names with commas between, such as vocals,drums, or None"),
        ("precision", "8", "16, bf16, 32"),
    ],
)
def test_a_wrong_value_is_one_line_with_what_is_allowed(
    songs: str, name: str, text: str, allowed: str
) -> None:
    problems = problems_of("--musdb_root", songs, f"--{name}={text}")
    assert problems == [f"{name}: got {text!r}, allowed: {allowed}"]


def test_numbers_and_bits_are_read_as_the_readme_writes_them(songs: str) -> None:
    train = run_config(songs, "--precision", "16", "--lr", "1e-3", "--seed", "+7").train
    assert (train.precision, train.lr, train.seed) == ("16", 0.001, 7)


def test_paths_are_absolute_for_workers_in_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "music").mkdir()
    config = run_config("music", "--output_dir", "~/run")
    assert config.data.musdb_root == tmp_path / "music"
    assert config.output_dir == tmp_path / "home" / "run"
    assert run_config("music").output_dir == tmp_path / "runs" / "lasaft"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_named_network_sets_its_row_of_options(songs: str, name: str) -> None:
    model = run_config(songs, "--model", name).model
    assert {key: getattr(model, key) for key in VARIANTS[name]} == VARIANTS[name]


def test_options_win_over_the_named_network_in_any_order(songs: str) -> None:
    for words in (["--embedding_dim", "48", "--model", "lasaft_net_large"],
                  ["model=lasaft_net_large", "embedding_dim=48"]):  # fmt: skip
        model = run_config(songs, *words).model
        assert (model.embedding_dim, model.n_fft) == (48, 4096)


def test_an_unknown_network_is_told_with_the_nearest(songs: str) -> None:
    (problem,) = problems_of("--musdb_root", songs, "--model", "CUNET_TFC_GPOCM_LASAFT")
    assert problem.startswith("model: got 'CUNET_TFC_GPOCM_LASAFT', allowed: CUNET_TFC_FiLM, ")
    assert "did you mean CUNET_TFC_GPoCM_LaSAFT" in problem


def test_all_problems_come_at_once_each_in_a_line_that_names_the_option(songs: str) -> None:
    words = (
        "--n_fft=abc --nblocks 7 --n_blocks 6 --precision 8 --target_names vocals,drum "
        "--synthetic_train 1 --num_tdfs 3 --model CUNET_TFC_FiLM stray --lr"
    )
    problems = problems_of("--musdb_root", songs, *words.split())
    assert {problem.partition(":")[0] for problem in problems} == {
        "nblocks", "stray", "lr", "n_fft", "precision", "n_blocks", "target_names", "num_tdfs",
        "synthetic_train",
    }  # fmt: skip
    assert len(problems) == 9
    assert all("\n" not in problem for problem in problems)


def test_a_wrong_option_does_not_cause_others_to_be_blamed(songs: str) -> None:
    """With 4097 refused, hop_length must not be compared with the default n_fft."""
    problems = problems_of("--musdb_root", songs, "--n_fft", "4097", "--hop_length", "2048")
    assert problems == ["n_fft: got 4097, allowed: an even number"]


def test_a_default_at_fault_hides_no_other_problem() -> None:
    problems = problems_of(
        "--accumulate_grad_batches", "3", "--gain_db", "3", "--musdb_root", "/nowhere"
    )
    assert [problem.partition(":")[0] for problem in problems] == [
        "batch_size", "musdb_root", "gain_db",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--nblocks", "7"], "nblocks: no such option; did you mean n_blocks"),
        (["--train.n_fft", "7"], "train.n_fft: no such option; did you mean model.n_fft?"),
        (["--optimiser", "adam"], "did you mean optimizer?"),
        (["--optimizer", "Adam"], "did you mean adam"),
        (["--presets", "demo"], "did you mean preset"),
        (["--train", "3"], "train: is a group of options, not an option"),
        (["--n_fft"], "n_fft: a value is missing, allowed: a whole number from 16 to 65536"),
        (["--n_fft", "--lr", "1"], "n_fft: a value is missing"),
        (["n_fft", "7"], "n_fft: an option is written --name VALUE or name=VALUE; did you mean"),
        (["-n_fft", "7"], "-n_fft: an option is written --name VALUE"),
        (["--", "7"], "--: an option is written --name VALUE"),
        (["--preset"], "preset: a value is missing"),
    ],
)
def test_misspelt_words_get_an_answer(words: list[str], hint: str) -> None:
    assert any(hint in problem for problem in problems_of(*words))


def test_the_value_of_an_unknown_option_is_not_blamed_too(songs: str) -> None:
    assert len(problems_of("--musdb_root", songs, "--nblocks", "7", "--unknown=3", "-q", "4")) == 3


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--model", "CUNET_TFC_FiLM", "--num_tdfs", "6"], "num_tdfs"),
        (["--gain_db", "3"], "gain_db"),
        (["--loss_raw_scale", "1"], "loss_raw_scale"),
        (["--gpus", "2", "--world_size", "2"], "world_size"),
        (["--log", "False", "--experiment_name", "x"], "experiment_name"),
        (["--address", "auto", "--num_cpus", "2"], "num_cpus"),
    ],
)
def test_an_option_without_effect_is_an_error(songs: str, words: list[str], name: str) -> None:
    (problem,) = problems_of("--musdb_root", songs, *words)
    assert problem.startswith(f"{name}: has no effect, because ")


def test_an_evaluation_takes_the_sources_from_the_checkpoint_or_for_estimates(
    songs: str, tmp_path: Path
) -> None:
    words = ["--musdb_root", songs, "--sources", "voice,rest"]
    problems = problems_of(*words, job="evaluate")
    assert "sources: has no effect, because the checkpoint says it; leave it out" in problems
    command = parse([*words, "--estimates_dir", str(tmp_path)], "evaluate")
    assert command.config.model.sources == ("voice", "rest")


def test_saying_that_something_is_off_is_no_error(songs: str) -> None:
    config = run_config(songs, "--sync_batchnorm", "False", "--loss_raw_scale", "None")
    assert not config.train.sync_batchnorm


def test_a_preset_may_hold_options_without_effect(songs: str, tmp_path: Path) -> None:
    preset = own_preset(tmp_path, "num_tdfs: 9\ngain_db: 3\n")
    assert run_config(songs, "--preset", preset, "--model", "CUNET_TFC_FiLM").model.num_tdfs == 9


@pytest.mark.parametrize(
    ("job", "name"),
    [("preprocess", "lr"), ("train", "musdb_root"), ("evaluate", "n_blocks"), ("report", "lr")],
)
def test_an_option_that_a_job_does_not_read_is_an_error(job: str, name: str) -> None:
    value = {"musdb_root": "/m", "n_blocks": "9", "lr": "0.1"}[name]
    problems = problems_of(f"--{name}", value, job=job)
    assert f"{name}: has no effect in jobs.{job}; leave it out" in problems


@pytest.mark.parametrize(
    ("job", "words", "problem"),
    [
        ("run", [], "musdb_root: got None, allowed: the folder of MUSDB18"),
        ("preprocess", ["--musdb_root", "/nowhere"], "/nowhere does not exist"),
        ("preprocess", ["--musdb_root", __file__], "is no folder"),
        ("train", ["--shards_dir", "/nowhere"], "shards_dir: /nowhere holds no shards"),
        ("train", ["--resume_from_checkpoint", "/nowhere"], "resume_from_checkpoint: /nowhere is"),
        ("evaluate", ["--checkpoint", "/nowhere"], "checkpoint: /nowhere is no checkpoint"),
        ("evaluate", ["--estimates_dir", "/nowhere"], "estimates_dir: /nowhere is no folder"),
        ("report", ["--output_dir", "/nowhere"], "output_dir: /nowhere holds no scores"),
    ],
)
def test_what_must_exist_is_looked_for_before_any_cluster(
    job: str, words: list[str], problem: str
) -> None:
    assert any(problem in line for line in problems_of(*words, job=job))


@pytest.mark.parametrize("value", ["True", "False"])
@pytest.mark.parametrize("job", ["run", "preprocess", "train", "tune", "evaluate", "doctor"])
def test_filed_mode_is_refused_where_it_would_do_nothing(job: str, value: str) -> None:
    told = f"filed_mode: has no effect in jobs.{job}; leave it out"
    assert told in problems_of("--filed_mode", value, job=job)


def test_a_preset_and_the_config_of_an_older_run_may_hold_filed_mode(
    songs: str, tmp_path: Path
) -> None:
    config = run_config(songs, "--preset", own_preset(tmp_path, "filed_mode: false\n"))
    assert not config.data.filed_mode
    assert from_json(to_json(config)) == config
    assert "filed_mode" not in command_line("run", config.model_dump(mode="json"))


@pytest.mark.parametrize("job", ["run", "doctor"])
def test_jobs_from_songs_to_scores_read_every_other_option_of_the_data(job: str) -> None:
    unread = {name for name, option in all_options().items() if not JOBS[job].reads(option)}
    assert unread & DataConfig.model_fields.keys() == {"filed_mode"}


_WORDS = st.one_of(
    st.sampled_from(["--n_fft", "--lr", "lr=", "--model", "--preset", "--t_down_layers", "-"]),
    st.sampled_from(["demo", "film", "lasaft_net", "0,1", "[", "True", "None", "--json", "--x="]),
    st.text(max_size=8),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_WORDS, max_size=6))
def test_any_words_give_a_command_or_one_config_error(words: list[str]) -> None:
    problems = ["none"]
    try:
        parse(words, "run")
    except ConfigError as error:
        problems = [str(problem) for problem in error.problems]
    assert problems
    assert all(problem.strip() for problem in problems)
