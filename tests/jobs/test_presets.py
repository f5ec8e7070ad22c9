"""Presets: plain YAML files with options, and those that come with the program."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.cli import parse
from jobs.cli.presets import PRESETS, read_preset
from lasaft.config import variant_name
from lasaft.errors import ConfigError
from pipeline.config import to_json
from pipeline.config.roles import all_options
from pipeline.config.run import without_effect
from tests.helpers import ROOT
from tests.helpers.commands import own_preset, problems_of, run_config

OPTIONS = all_options()


def test_presets_come_first_and_left_to_right(songs: str, tmp_path: Path) -> None:
    preset = own_preset(tmp_path, "model:\n  n_fft: 512\n  hop_length: 256\ntrain:\n  lr: 0.5\n")
    config = run_config(songs, "--lr", "0.25", "--preset", "demo", "--preset", preset)
    assert (config.model.n_fft, config.train.lr, config.model.dk) == (512, 0.25, 16)


@pytest.mark.parametrize(
    "text",
    [
        "model: lasaft_net_large\n",
        "model:\n  variant: lasaft_net_large\n",
        "model: {n_blocks: 9, variant: lasaft_net_large}\n",
        "n_fft: 4096\nn-blocks: 9\nembedding_dim: 64\n",
        "model.n_fft: 4096\nmodel: {n_blocks: 9}\nembedding_dim: 64\n",
    ],
)
def test_a_network_can_be_given_in_yaml_in_many_ways(songs: str, tmp_path: Path, text: str) -> None:
    model = run_config(songs, "--preset", own_preset(tmp_path, text)).model
    assert (model.n_fft, model.n_blocks, model.embedding_dim) == (4096, 9, 64)


def test_yaml_values_mean_what_the_command_line_means(songs: str, tmp_path: Path) -> None:
    text = """
        lr: 1e-3
        precision: 16
        pin_memory: true
        t_down_layers: [0, 1]
        f_down_layers: 0,1,2
        target_names: [vocals, "bass"]
        bn_factor: null
        control_input_dim: ~
        gpus:
        save_estimates: none
        run_id: '0123'
    """
    config = run_config(songs, "--preset", own_preset(tmp_path, text))
    assert config.train.lr == 0.001
    assert config.train.precision == "16"
    assert config.train.pin_memory is True
    assert (config.model.t_down_layers, config.model.f_down_layers) == ((0, 1), (0, 1, 2))
    assert config.train.target_names == ("vocals", "bass")
    assert (config.model.bn_factor, config.model.control_input_dim, config.train.gpus) == (
        None, None, None,
    )  # fmt: skip
    assert (config.evaluate.save_estimates, config.tracking.run_id) == ("none", "0123")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("n_fft: 0x800", "n_fft: got '0x800' (in own.yaml), allowed: a whole number"),
        ("patience: 1:30", "patience: got '1:30' (in own.yaml)"),
        ("pin_memory: yes", "pin_memory: got 'yes' (in own.yaml), allowed: True or False"),
        ("n_fft: [1, 2]", "n_fft: got [1, 2] (in own.yaml)"),
        ("n_fft: {a: 1}", "own.yaml, line 1: n_fft: got a nested value, allowed: a whole number"),
        ("n_fft: null", "n_fft: got None (in own.yaml)"),
        ("\nnfft: 3", "own.yaml, line 2: nfft: no such option; did you mean n_fft"),
        ("train: {n_fft: 3}", "line 1: train.n_fft: no such option; did you mean model.n_fft?"),
        ("n_fft: 512\nn_fft: 512", "line 2: n_fft: is given twice"),
        ("n_fft: 512\nmodel: {n-fft: 512}", "line 2: n_fft: is given twice"),
        ("train: {lr: 1}\ntrain: {seed: 1}", "line 2: train: is given twice"),
        ("model: tfc\nmodel: {variant: x}", "line 2: model: is given twice"),
        ("model: [a]", "model: got [a] (in own.yaml), allowed: CUNET"),
        ("lr: !!python/name:os.system 1", "lr: the tag tag:yaml.org,2002:python/name:os.system"),
        ("!!python/object:x.Y {lr: 1}", "the file: must be a mapping of options"),
        ("!t lr: 1", "line 1: the tag !t is refused"),
        ("target_names: [!t a]", "target_names: the tag !t is refused"),
        ("lr: &a 1\nseed: *a", "no plain YAML (line 1: anchors"),
        ("- a\n- b", "the file: must be a mapping of options"),
        ("lr: [", "no plain YAML (line 1"),
        ("a: 1\n---\nb: 2", "no plain YAML"),
        ("lr: " + "[" * 1000, "no plain YAML"),
        ("\x00", "no plain YAML"),
    ],
)
def test_faults_in_a_preset_are_told_with_their_place(
    tmp_path: Path, text: str, problem: str
) -> None:
    problems = problems_of("--preset", own_preset(tmp_path, text))
    assert any(problem in line for line in problems), problems


def test_no_tag_of_a_preset_runs_anything(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = f"lr: !!python/object/apply:os.mkdir ['{mark}']"
    assert any("the tag" in line for line in problems_of("--preset", own_preset(tmp_path, text)))
    assert not mark.exists()


def test_files_that_are_no_presets(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run_id: \xe9\n")
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    for name, problem in [
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "latin.yaml"), "no plain YAML"),
        (str(tmp_path / "big.yaml"), "is larger than"),
        ("dmo", "allowed: a YAML file, or demo, film, "),
        ("dmo", "did you mean demo?"),
    ]:
        assert any(problem in line for line in problems_of("--preset", name))


def test_an_empty_preset_is_nothing(songs: str, tmp_path: Path) -> None:
    assert run_config(songs, "--preset", own_preset(tmp_path, "# nothing\n")) == run_config(songs)


def test_the_config_of_a_run_is_a_preset(songs: str, tmp_path: Path) -> None:
    config = run_config(
        songs, "--model", "lightsaft_net", "--lr", "0.015", "--t_down_layers", "0,2"
    )
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    assert parse(["--preset", str(path)], "run").config == config


TABLE_1 = {
    "film": ("CUNET_TFC_FiLM", 4.49),
    "film_tdf": ("CUNET_TFC_FiLM_TDF", 4.95),
    "film_lasaft": ("CUNET_TFC_FiLM_LaSAFT", 5.46),
    "gpocm": ("CUNET_TFC_GPoCM", 4.67),
    "gpocm_tdf": ("CUNET_TFC_GPoCM_TDF", 4.92),
    "gpocm_lasaft": ("CUNET_TFC_GPoCM_LaSAFT", 5.64),
}


def test_the_paper_and_the_demo_are_presets() -> None:
    assert set(PRESETS.names()) >= {
        *TABLE_1,
        "lightsaft",
        "lasaft_net_large",
        "lasaft_net_v2",
        "demo",
    }


@pytest.mark.parametrize("name", PRESETS.names())
def test_a_preset_names_its_source_and_holds_no_idle_option(songs: str, name: str) -> None:
    synthetic = name in ("demo", "laptop", "table1_laptop")
    config = (
        parse(["--preset", name], "run").config
        if synthetic
        else run_config(songs, "--preset", name)
    )
    given = {item.name for item in read_preset(name, OPTIONS)[0]}
    assert not given & without_effect(config).keys()
    assert len(PRESETS.first_line(name)) > 30


@pytest.mark.parametrize("name", TABLE_1)
def test_the_rows_of_table_1_are_the_readme_settings(songs: str, name: str) -> None:
    config = run_config(songs, "--preset", name)
    variant, sdr = TABLE_1[name]
    assert variant_name(config.model) == variant
    assert f"{sdr} dB" in PRESETS.first_line(name)
    model, train = config.model, config.train
    assert (model.n_fft, model.hop_length, model.num_frame, model.n_blocks) == (2048, 1024, 128, 7)
    assert (train.batch_size, train.precision, train.lr, train.seed) == (8, "16", 0.001, 2020)


def test_the_large_network_is_table_2(songs: str) -> None:
    config = run_config(songs, "--preset", "lasaft_net_large")
    assert (config.model.n_fft, config.model.n_blocks, config.model.embedding_dim) == (4096, 9, 64)
    assert (config.train.gpus, config.train.sync_batchnorm, config.train.lr) == (4, True, 1e-4)


def test_the_demo_needs_no_songs_and_takes_real_ones_too(songs: str) -> None:
    assert parse(["--preset", "demo"], "run").config.data.synthetic_train >= 8
    laptop = parse(["--preset", "laptop"], "run").config.data
    assert laptop.synthetic_train + laptop.synthetic_valid + laptop.synthetic_test == 40
    assert run_config(songs, "--preset", "demo").data.musdb_root == Path(songs)


def test_the_words_of_the_preset_files_are_plain_yaml_for_other_tools() -> None:
    for name in PRESETS.names():
        path = ROOT / "pipeline" / "presets" / f"{name}.yaml"
        groups = {"model", "data", "train", "search", "evaluate"}
        assert set(yaml.safe_load(path.read_text())) <= groups


@pytest.mark.timeout(200)
def test_a_file_of_very_many_unknown_options_is_one_error_at_once(tmp_path: Path) -> None:
    """For each of them what was meant is sought among all options."""
    file = tmp_path / "many.yaml"
    file.write_text("".join(f"k{number}: 1\n" for number in range(5_000)))
    with pytest.raises(ConfigError, match=r"many\.yaml is no plain YAML .*more than 1000 keys"):
        parse(["--preset", str(file)], "train")
    file.write_text(f"options:\n  block: [{', '.join(['tfx'] * 5_000)}]\n")
    with pytest.raises(ConfigError, match=r"many\.yaml is no plain YAML .*more than 1000 values"):
        parse(["--space", str(file)], "tune")
