"""``python -m jobs.main``: folders of runs, mode eval, and what the stages are asked to do."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import main as main_job
from jobs.cli.readme import parse_readme
from jobs.cli.run import Result
from lasaft.errors import ConfigError, StageError
from pipeline.config import RunConfig, from_json, to_json
from pipeline.config.folders import RunFolder
from tests.helpers.commands import readme_command
from tests.helpers.processes import written_by_another
from tests.helpers.readme import README_COMMAND

pytestmark = pytest.mark.usefixtures("readme_songs")


def test_a_run_without_a_name_is_named_by_the_time_and_says_how_to_go_on() -> None:
    words = ["--musdb_root", "../repos/musdb18_wav"]
    command = parse_readme(words, now=datetime(2020, 11, 3, 17, 5, 9))
    assert (
        command.config.tracking.run_id
        == RunFolder.of(command.config).root.name
        == "20201103_170509"
    )
    assert command.again == "the same command with --run_id 20201103_170509"
    assert readme_command("--run_id", "x").again == "the same command"


def test_runs_on_the_same_spectrograms_share_their_shards_and_others_do_not() -> None:
    def shards(*words: str) -> Path:
        return RunFolder.of(readme_command(*words).config).shards

    same = shards("--run_id", "a")
    assert same.parent == Path.cwd() / "etc" / "checkpoints" / "shards"
    assert same == shards("--run_id", "b", "--model", "CUNET_TFC_FiLM", "--lr", "0.1")
    others = (
        "--n_fft 4096", "--hop_length 512", "--dev_mode True", "--musdb_is_wav True",
        "--sources vocals,rest", "--input_channels 2", "--musdb_root .",
    )  # fmt: skip
    found = [shards(*words.split()) for words in others]
    assert len({same, *found}) == 1 + len(others)
    assert shards("--shards_dir", "own") == Path.cwd() / "own"


def test_without_filed_mode_the_shards_lie_in_the_run() -> None:
    assert readme_command("--filed_mode", "False").config.data.shards_dir is None


def test_a_kept_checkpoint_of_the_same_run_can_be_named_alone() -> None:
    kept = Path("etc/checkpoints/CUNET_TFC_GPoCM_LaSAFT/r/checkpoints/epoch=0003")
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    config = readme_command("--run_id", "r", "--resume_from_checkpoint", "epoch=0003").config
    assert config.train.resume_from_checkpoint == kept.absolute()


@pytest.fixture
def trained() -> RunConfig:
    """A finished run of the README's command, as far as an evaluation looks at it."""
    config = parse_readme(shlex.split(README_COMMAND)).config
    for name in ("checkpoint", "checkpoints/epoch=0007", "checkpoints/epoch=0012"):
        (RunFolder.of(config).root / name).mkdir(parents=True)
        (RunFolder.of(config).root / name / "config.json").write_text("{}")
    (RunFolder.of(config).root / "config.json").write_text(to_json(config))
    return config


EVAL = ["--mode", "eval", "--run_id", "cunet_tfc_gpocm_lasaft"]


def test_eval_needs_the_name_of_the_run_only(trained: RunConfig) -> None:
    command = parse_readme(EVAL)
    assert command.mode == "eval"
    assert command.config == trained


def test_eval_takes_the_whole_readme_command_too(trained: RunConfig) -> None:
    command = parse_readme([*shlex.split(README_COMMAND), "--mode", "eval"])
    assert command.mode == "eval"
    assert command.config == trained


@pytest.mark.parametrize("epoch", ["7", "0007", "epoch=7", "epoch=0007", "epoch=7.ckpt"])
def test_eval_of_a_kept_epoch(trained: RunConfig, epoch: str) -> None:
    config = parse_readme([*EVAL, "--epoch", epoch]).config
    assert config.evaluate.checkpoint == RunFolder.of(trained).root / "checkpoints" / "epoch=0007"


def test_eval_on_other_songs_with_other_settings(trained: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "hq").mkdir()
    words = ["--musdb_root", str(tmp_path / "hq"), "--overlap_ratio", "0.25", "--num_cpus", "2"]
    config = parse_readme([*EVAL, *words]).config
    assert config.data.musdb_root == tmp_path / "hq"
    assert (config.evaluate.overlap_ratio, config.cluster.num_cpus) == (0.25, 2)
    assert (config.model, config.train) == (trained.model, trained.train)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--n_fft 4096", "n_fft: got 4096, but the run was trained with 2048; leave it out"),
        ("--target_name drum", "target_names: got ('drums',), but the run was trained with None"),
        ("--n_fft x", "n_fft: got 'x', allowed: a whole number"),
        ("--epoch 3", "epoch: got '3', allowed: one that was kept (epoch=0007, epoch=0012)"),
        ("--epoch last", "epoch: got 'last', allowed: one that was kept"),
        ("--run_id other", "run_id: no run other in "),
        ("--run_id None", "run_id: needed with mode eval; the runs in "),
        ("--model CUNET_TFC_FiLM", "run_id: no run cunet_tfc_gpocm_lasaft of CUNET_TFC_FiLM in "),
        ("--ckpt_root_path elsewhere", "run_id: no run cunet_tfc_gpocm_lasaft in "),
        ("--musdb_root /nowhere", "musdb_root: /nowhere does not exist"),
        ("--run_id other --lr x", "lr: got 'x', allowed: a number above 0"),
    ],
)  # fmt: skip
def test_eval_refuses_what_contradicts_the_run(
    trained: RunConfig, words: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_readme([*EVAL, *words.split()])
    assert any(line.startswith(problem) for line in map(str, caught.value.problems))


def test_eval_asks_for_the_model_where_two_have_a_run_of_that_name(trained: RunConfig) -> None:
    twin = (
        RunFolder.of(trained).root.parents[1] / "CUNET_TFC_FiLM" / RunFolder.of(trained).root.name
    )
    twin.mkdir(parents=True)
    (twin / "config.json").write_text(to_json(trained))
    with pytest.raises(ConfigError, match="model: needed, because several have a run"):
        parse_readme(EVAL)
    model = ["--model", "CUNET_TFC_GPoCM_LaSAFT"]
    assert parse_readme([*EVAL, *model]).config.output_dir == trained.output_dir


def test_eval_of_a_run_that_never_trained_says_so(trained: RunConfig) -> None:
    (RunFolder.of(trained).root / "checkpoint" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"checkpoint: .* is no checkpoint"):
        parse_readme(EVAL)


def test_a_damaged_run_is_refused_by_name(trained: RunConfig) -> None:
    (RunFolder.of(trained).root / "config.json").write_text('{"model": {"n_fft": 3}}')
    with pytest.raises(ConfigError, match=r"config.json: n_fft: got 3, allowed: a whole number"):
        parse_readme(EVAL)


class Stages:
    """Stands in for the stages and notes their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.failure: BaseException | None = None
        monkeypatch.setattr("pipeline.workflow.stages.make_shards", self.preprocess)
        monkeypatch.setattr("pipeline.workflow.stages.train_network", self.train)
        monkeypatch.setattr(
            "pipeline.workflow.stages.score_songs", lambda c: self.calls.append("evaluate")
        )
        monkeypatch.setattr("pipeline.workflow.stages.make_report", self.report)
        monkeypatch.setattr("jobs.main.ready_cluster", self.connected)
        monkeypatch.setattr("jobs.main.require_places", lambda wanted: None)
        monkeypatch.setattr("jobs.main.training_result", lambda result: Result("trained", {}))
        monkeypatch.setattr("jobs.cli.show.read_summaries", lambda config: [])

    @contextlib.contextmanager
    def connected(self, config: RunConfig, purpose: str) -> Iterator[None]:
        yield

    def shards(self, config: RunConfig) -> Path:
        return RunFolder.of(config).shards

    def preprocess(self, config: RunConfig) -> SimpleNamespace:
        self.calls.append("preprocess")
        self.shards(config).mkdir(parents=True, exist_ok=True)
        (self.shards(config) / "manifest.json").write_text("{}")
        return SimpleNamespace()

    def train(self, config: RunConfig) -> SimpleNamespace:
        self.calls.append("train")
        assert (self.shards(config) / "manifest.json").is_file()
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace()

    def score(self, config: RunConfig) -> None:
        self.calls.append("evaluate")

    def report(self, config: RunConfig) -> SimpleNamespace:
        self.calls.append("report")
        page = RunFolder.of(config).root / "report" / "index.html"
        return SimpleNamespace(page=page, summaries=[])


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(monkeypatch)


TRAIN = ["--musdb_root", "../repos/musdb18_wav", "--run_id", "r"]
RUN = Path("etc/checkpoints/CUNET_TFC_GPoCM_LaSAFT/r")


def test_training_preprocesses_trains_and_stores_its_config(stages: Stages) -> None:
    assert main_job.main(TRAIN) == 0
    assert stages.calls == ["preprocess", "train"]
    stored = from_json((RUN / "config.json").read_bytes())
    assert stored == parse_readme(TRAIN).config


def test_a_refused_second_training_leaves_the_config_of_the_first(stages: Stages) -> None:
    assert main_job.main(TRAIN) == 0
    (RUN / "training").mkdir()
    stages.failure = ConfigError("lr: got 0.1, but the training has 0.001")
    assert main_job.main([*TRAIN, "--lr", "0.1"]) == 2
    assert from_json((RUN / "config.json").read_bytes()).train.lr == 0.001


def test_filed_mode_keeps_the_shards_for_later_runs(stages: Stages) -> None:
    assert main_job.main(TRAIN) == 0
    shards = RunFolder.of(parse_readme([*TRAIN, "--run_id", "another"]).config).shards
    assert (shards / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("failure", "code"), [(None, 0), (StageError("no"), 1), (KeyboardInterrupt(), 130)]
)
def test_without_filed_mode_the_shards_are_gone_however_the_run_ends(
    stages: Stages, failure: BaseException | None, code: int
) -> None:
    stages.failure = failure
    assert main_job.main([*TRAIN, "--filed_mode", "False"]) == code
    assert stages.calls == ["preprocess", "train"]
    assert not (RUN / "shards").exists()
    assert not Path("etc/checkpoints/shards").exists()


def test_evaluation_scores_and_reports(
    stages: Stages, trained: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_job.main([*EVAL, "--json"]) == 0
    assert stages.calls == ["evaluate", "report"]
    data = json.loads(capsys.readouterr().out)
    assert data["report"] == str(RunFolder.of(trained).root / "report" / "index.html")


def test_wrong_usage_ends_with_2_before_any_stage(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_job.main([*TRAIN, "--n_fft", "x"]) == 2
    assert stages.calls == []
    assert capsys.readouterr().err.startswith("main: error: n_fft: got 'x', allowed: ")
    assert not Path("etc").exists()


def test_two_commands_never_work_on_one_run(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    with written_by_another(RUN.absolute()):
        assert main_job.main(TRAIN) == 1
    assert stages.calls == []
    assert "is in use by another running command" in capsys.readouterr().err
