"""Each wrong option is told, whatever else is wrong, and none is blamed for another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli import parse
from jobs.cli.readme import parse_readme
from lasaft.config import ModelConfig
from lasaft.errors import ConfigError, Problem
from pipeline.config import RunConfig
from pipeline.config.roles import all_options
from pipeline.config.run import without_effect

# For each job, groups of words that are wrong in ways that have nothing to do with each other,
# each with how the lines begin that tell of it.
_EVERYWHERE = {
    "--nblocks 7": ["nblocks: no such option; did you mean n_blocks"],
    "stray": ["stray: an option is written"],
    "--output_dir=": ["output_dir: got ''"],
}
_NETWORK = {
    "--n_fft abc": ["n_fft: got 'abc', allowed: a whole number"],
    "--control_n_layer=": ["control_n_layer: got ''"],
    "--kernel_size_t 4": ["kernel_size_t: got 4, allowed: an odd number"],
    "--tdf_activation relu": ["tdf_activation: has no effect, because block tfc_lasaft"],
}
_TRAINING = {
    "--precision 8": ["precision: got '8'"],
    "--min_epochs 7 --max_epochs 6": ["min_epochs: got 7, allowed: at most max_epochs (6)"],
    "--batch_size 6 --accumulate_grad_batches 4": ["batch_size: got 6, allowed: a multiple of"],
    "--auto_lr_schedule True --lr_schedule cosine": ["auto_lr_schedule: got True"],
    "--betas 0.9,1.5": ["betas: got '0.9,1.5', allowed: two numbers from 0 to 0.99999 with"],
    "--momentum 0.5": ["momentum: has no effect, because optimizer adam does not use it"],
    "--control_vector_type multi_hot --set_sizes 2,a": ["set_sizes: got '2,a', allowed: numbers"],
    "--target_names piano": ["target_names: got 'piano', allowed: vocals"],
    "--loss_raw_scale 1": ["loss_raw_scale: has no effect, because neither train_loss"],
    "--resources_per_worker CPU": ["resources_per_worker: got 'CPU'"],
    "--num_workers 0": ["num_workers: got '0'"],
    "--gain_db 3": ["gain_db: has no effect, because gain_probability is 0"],
    "--space nosuch": ["space: got 'nosuch'"],
    "--run_id ../up": ["run_id: got '../up'"],
}
_SONGS = {
    "--musdb_root /nowhere": ["musdb_root: /nowhere does not exist"],
    "--musdb_is_wav maybe": ["musdb_is_wav: got 'maybe'"],
}
WRONG = {
    "run": _EVERYWHERE | _NETWORK | _TRAINING | _SONGS,
    "train": _EVERYWHERE
    | _NETWORK
    | {words: lines for words, lines in _TRAINING.items() if words != "--space nosuch"}
    | {
        "--shards_dir /nowhere": ["shards_dir: /nowhere holds no shards"],
        "--musdb_root /nowhere": ["musdb_root: has no effect in jobs.train"],
    },
    "tune": _EVERYWHERE
    | _NETWORK
    | {words: lines for words, lines in _TRAINING.items() if words != "--gain_db 3"}
    | {"--shards_dir /nowhere": ["shards_dir: /nowhere holds no shards"]},
    "evaluate": _EVERYWHERE
    | _SONGS
    | {
        "--split foo": ["split: got 'foo', allowed: train, valid, test"],
        # What the others have no effect with is in doubt itself.
        "--estimates_dir /nope --overlap_ratio 0.1": ["estimates_dir: /nope is no folder"],
        "--separator demucs": ["separator: got 'demucs'"],
        "--verify -1": ["verify: got '-1'"],
        "--repair=": ["repair: is a flag of jobs.preprocess"],
        "--lr 0.1": ["lr: has no effect in jobs.evaluate"],
        "--target_names piano": ["target_names: got 'piano'"],
    },
    "preprocess": _EVERYWHERE
    | _SONGS
    | {
        "--n_fft abc": ["n_fft: got 'abc'"],
        "--max_frames_per_shard 0": ["max_frames_per_shard: got '0'"],
        "--shards_dir s3://a:b@c/d": ["shards_dir: the address holds a secret"],
        "--address auto --num_cpus 2": ["num_cpus: has no effect, because address"],
        "--lr 0.1": ["lr: has no effect in jobs.preprocess"],
    },
    "main": {
        words: lines
        for words, lines in (_EVERYWHERE | _NETWORK | _TRAINING | _SONGS).items()
        if words not in ("--output_dir=", "--space nosuch")
    }
    | {
        "--log wandb": ["log: got 'wandb'"],
        "--split test": ["split: has no effect with mode train"],
    },
}


def _told(job: str, words: Sequence[str]) -> list[Problem]:
    read: Callable[[Sequence[str]], object] = parse_readme
    if job != "main":
        read = lambda words: parse(words, job)  # noqa: E731
    try:
        read(words)
    except ConfigError as error:
        return error.problems
    return []


def _begins(problems: Sequence[Problem], lines: Sequence[str]) -> bool:
    told = sorted(map(str, problems))
    return len(told) == len(lines) and all(map(str.startswith, told, sorted(lines)))


def test_a_missing_folder_is_told_beside_a_wrong_value_whose_name_its_message_has() -> None:
    words = ["--estimates_dir", "/nope", "--split", "foo", "--synthetic_test", "1"]
    assert _begins(
        _told("evaluate", words), ["split: got 'foo'", "estimates_dir: /nope is no folder"]
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_wrong_option_is_told_and_no_other(data: st.DataObject) -> None:
    job = data.draw(st.sampled_from(sorted(WRONG)))
    wrong = data.draw(st.lists(st.sampled_from(sorted(WRONG[job])), unique=True, min_size=2))
    alone = {str(one) for one in _told(job, [])}
    problems = _told(job, [word for words in wrong for word in words.split()])
    told = [one for one in problems if str(one) not in alone]
    assert _begins(told, [line for words in wrong for line in WRONG[job][words]])


@pytest.mark.parametrize(
    ("job", "words", "told"),
    [
        ("run", "--n_fft --hop_length 2048 --preset demo", ["n_fft: a value is missing"]),
        ("run", "--n-fft --hop_length 2048 --preset demo", ["n_fft: a value is missing"]),
        ("run", "--model bogus --tdf_activation relu --preset demo", ["model: got 'bogus'"]),
        ("run", "--preset dmeo --hop_length 2048", ["preset: got 'dmeo'"]),
        ("run", "--block bogus --tdf_activation relu --preset demo", ["block: got 'bogus'"]),
        ("run", "--train_loss x --loss_raw_scale 1 --preset demo", ["train_loss: got 'x'"]),
        ("run", "--space= --num_trials 3 --preset demo", ["space: got ''"]),
        ("evaluate", "--estimates_dir= --synthetic_test 1", ["estimates_dir: got ''"]),
        ("evaluate", "--scores_dir=", ["scores_dir: got ''"]),
        ("report", "--output_dir=", ["output_dir: got ''"]),
        ("train", "--output_dir=", ["output_dir: got ''"]),
        ("main", "--mode evl --split test --synthetic_train 1", ["mode: got 'evl'"]),
        ("evaluate", "--scores_dir /nope --oracles True", ["scores_dir: /nope is no folder"]),
        ("tune", "--seeds 2", ["space: got None", "shards_dir: "]),
        ("tune", "--space small --objectives sdrr", ["objectives: got 'sdrr'", "shards_dir: "]),
        ("main", "--filed_mode maybe --shards_dir s --synthetic_train 1", ["filed_mode: got"]),
    ],
)
def test_nothing_is_told_that_follows_from_an_option_in_doubt(
    job: str, words: str, told: list[str]
) -> None:
    assert _begins(_told(job, words.split()), told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--synthetic_valid 1 --synthetic_test 1", ["synthetic_train: there is no train song"]),
        ("--synthetic_train 1", ["synthetic_test: there is no test song for evaluation"]),
        ("--synthetic_train 1 --split train", []),
        ("--synthetic_train 1 --split valid", ["synthetic_valid: there is no valid song"]),
        (
            "--synthetic_train 1 --synthetic_test 1 --space small",
            ["synthetic_valid: there is no valid song for a search, which compares trials by it"],
        ),
    ],
)
def test_splits_that_a_run_lacks_are_told(words: str, told: list[str]) -> None:
    assert _begins(_told("run", words.split()), told)


@pytest.mark.parametrize("job", ["run", "preprocess", "train", "tune"])
def test_sources_other_than_those_of_synthetic_songs_are_told_where_songs_are_made(
    job: str,
) -> None:
    words = ["--preset", "demo", "--sources", "violin,piano"]
    line = "sources: got violin, piano, allowed with synthetic songs: vocals, drums, bass, other"
    told = [str(one) for one in _told(job, words)]
    # Own shards are trained on with the demo's settings, although it makes songs for others.
    assert any(one.startswith(line) for one in told) == (job in ("run", "preprocess"))


@pytest.mark.parametrize("job", ["run", "train", "tune", "main"])
def test_a_schedule_that_comes_after_the_early_stop_is_told(tmp_path: Path, job: str) -> None:
    preset, line = tmp_path / "own.yaml", "auto_lr_schedule: has no effect, because patience 51"
    preset.write_text("train: {auto_lr_schedule: True, patience: 51}\n")
    words = ["--preset", str(preset)]
    if job == "main":
        words = ["--auto_lr_schedule", "True", "--patience", "51"]
    assert len([one for one in _told(job, words) if str(one).startswith(line)]) == 1
    longer = [*words, "--min_epochs", "53"]
    assert not [one for one in _told(job, longer) if one.option == "auto_lr_schedule"]


def test_the_other_lines_of_a_preset_with_a_fault_count(tmp_path: Path) -> None:
    preset = tmp_path / "own.yaml"
    preset.write_text("nblocks: 7\nsynthetic_train: 1\nsynthetic_test: 1\ntarget_names: [piano]\n")
    told = ["own.yaml, line 1: nblocks: no such option", "target_names: got 'piano'"]
    assert _begins(_told("run", ["--preset", str(preset)]), told)


def test_an_option_given_once_more_is_not_in_doubt() -> None:
    words = ["--preset", "nosuch", "--n_fft", "2048", "--hop_length", "2048"]
    told = ["preset: got 'nosuch'", "hop_length: got 2048, allowed: at most half of n_fft (1024)"]
    assert _begins(_told("run", words), told)


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(model=ModelConfig(modulation="none", block="tdf", bn_factor=None)),
        RunConfig(model=ModelConfig(n_blocks=1, block="tfc")),
    ],
)
def test_the_records_of_a_configuration_name_its_options(config: RunConfig) -> None:
    names = all_options().keys()
    for name, problem in without_effect(config).items():
        assert problem.option == name
        assert problem.others
        assert {name, *problem.others} <= names


def test_the_records_cross_process_borders() -> None:
    import pickle

    error = ConfigError([Problem("lr", 0.5, "less", others=("optimizer",)), "a text"])
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == error.problems
    assert str(again) == "lr: got 0.5, allowed: less\na text"


def test_a_run_checks_what_it_is_to_score_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "songs").mkdir()
    for name in ("checkpoint", "estimates_dir", "scores_dir", "resume_from_checkpoint"):
        words = ["--musdb_root", str(tmp_path / "songs"), f"--{name}", str(tmp_path / "nope")]
        with pytest.raises(ConfigError) as caught:
            parse(words, "run")
        assert [problem.option for problem in caught.value.problems] == [name]


def test_a_wrong_step_is_told_unless_the_options_that_decide_it_are_in_doubt() -> None:
    words = ["--synthetic_train", "2", "--synthetic_valid", "1", "--synthetic_test", "1"]
    with pytest.raises(ConfigError) as caught:
        parse([*words, "--rerun", "train,search"], "run")
    told = [str(problem) for problem in caught.value.problems]
    assert told == [
        "rerun: got 'search', allowed: songs, preprocess, train, evaluate, report",
    ]
    with pytest.raises(ConfigError) as caught:
        parse(["--synthetic_train", "x", "--rerun", "songs"], "run")
    assert [problem.option for problem in caught.value.problems] == ["synthetic_train"]


@pytest.mark.parametrize("place", [".", "..", "training/shards", "songs", "../run/scores"])
def test_shards_never_lie_among_what_else_a_run_makes(tmp_path: Path, place: str) -> None:
    words = ["--preset", "demo", "--output_dir", str(tmp_path / "run")]
    (problem,) = _told("run", [*words, "--shards_dir", str(tmp_path / "run" / place)])
    assert str(problem).startswith("shards_dir: got /")
    for own in ("run/shards", "run/mine", "other/shards", "runs"):
        assert _told("run", [*words, "--shards_dir", str(tmp_path / own)]) == []
    words += ["--musdb_root", str(tmp_path), "--shards_dir"]
    assert _told("run", [*words, str(tmp_path / "shards")]) == []
    assert _begins(_told("run", [*words, str(tmp_path)]), ["shards_dir: got /"])
