"""The LaSAFT README's command line, word for word, and every row of its reference."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.readme import parse_readme
from lasaft.config import VARIANTS
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from tests.helpers.commands import readme_command, readme_problems
from tests.helpers.readme import README_COMMAND

pytestmark = pytest.mark.usefixtures("readme_songs")


def _value(config: RunConfig, path: str) -> Any:
    section, name = path.split(".")
    return getattr(getattr(config, section), name)


def test_the_readme_command_is_accepted_word_for_word(readme_songs: Path) -> None:
    words = shlex.split(README_COMMAND)
    assert len(words) == 2 * 46
    command = parse_readme(words)
    config = command.config
    assert command.mode == "train"
    assert config.output_dir == Path.cwd() / (
        "etc/checkpoints/CUNET_TFC_GPoCM_LaSAFT/cunet_tfc_gpocm_lasaft"
    )
    assert RunFolder.of(config).songs.resolve() == readme_songs
    given = dict(zip((word.lstrip("-") for word in words[::2]), words[1::2], strict=True))
    for name in ("problem_name", "model", "mode", "musdb_root"):
        del given[name]
    found: dict[str, Any] = {}
    for section in ("model", "data", "train", "tracking"):
        found |= getattr(config, section).model_dump(mode="json")
    assert {name: str(found[name]) for name in given} == given


def test_each_flag_of_the_readme_command_is_heard() -> None:
    """Leaving a flag out, or giving another value, must not pass for the README's value."""
    words = shlex.split(README_COMMAND)
    others = {"seed": "1", "n_fft": "4096", "dk": "8", "lr": "0.1", "pocm_type": "naive"}
    for name, value in others.items():
        changed = [*words, f"--{name}", value]
        assert parse_readme(changed).config != parse_readme(words).config


ACCEPTED: list[tuple[str, str, Any]] = [
    ("--musdb_is_wav True", "data.musdb_is_wav", True),
    ("--musdb_is_wav False", "data.musdb_is_wav", False),
    ("--filed_mode True", "data.filed_mode", True),
    ("--filed_mode False", "data.filed_mode", False),
    ("--target_name vocals", "train.target_names", ("vocals",)),
    ("--target_name drum", "train.target_names", ("drums",)),
    ("--target_name drums", "train.target_names", ("drums",)),
    ("--target_name bass", "train.target_names", ("bass",)),
    ("--target_name other", "train.target_names", ("other",)),
    ("--target_names vocals,other", "train.target_names", ("vocals", "other")),
    ("--gpus 1", "train.gpus", 1),
    ("--gpus 4", "train.gpus", 4),
    ("--gpus 0", "train.gpus", 0),
    ("distributed_backend ddp --gpus 2", "train.distributed_backend", "ddp"),
    ("--distributed_backend ddp --gpus 2", "train.distributed_backend", "ddp"),
    ("--sync_batchnorm True --gpus 2", "train.sync_batchnorm", True),
    ("--pin_memory True", "train.pin_memory", True),
    ("--pin_memory False", "train.pin_memory", False),
    ("--num_workers 8", "train.num_workers", 8),
    ("--precision 16", "train.precision", "16"),
    ("--precision 32", "train.precision", "32"),
    ("--dev_mode True", "data.dev_mode", True),
    ("--run_id mine", "tracking.run_id", "mine"),
    ("--log True", "tracking.log", True),
    ("--log False", "tracking.log", False),
    ("--seed 7", "train.seed", 7),
    ("--batch_size 16", "train.batch_size", 16),
    *((f"--optimizer {name}", "train.optimizer", name) for name in ("adam", "rmsprop", "sgd")),
    ("--optimizer adagrad", "train.optimizer", "adagrad"),
    ("--lr 0.01", "train.lr", 0.01),
    ("--save_top_k 3", "train.save_top_k", 3),
    ("--save_weights_only True", "train.save_weights_only", True),
    ("--patience 50", "train.patience", 50),
    ("--min_epochs 100", "train.min_epochs", 100),
    ("--max_epochs 20", "train.max_epochs", 20),
    ("--n_fft 4096", "model.n_fft", 4096),
    ("--hop_length 512", "model.hop_length", 512),
    ("--num_frame 64", "model.num_frame", 64),
    ("num_frame 64", "model.num_frame", 64),
    *(
        (f"--{name} {loss}", f"train.{name}", loss)
        for name in ("train_loss", "val_loss")
        for loss in (
            "spec_l1", "spec_l2", "spec_mse", "raw_l1", "raw_l2", "raw_mse", "sdr_like", "sdr",
            "dsr", "nsdr", "nsdr_44100", "ldsr", "distortion", "ncs", "ncs_44100", "nlcs",
        )
    ),
    (
        "--train_loss raw_and_spec --loss_raw_scale 1 --loss_raw_mode raw_l1 --loss_spec_scale 2 "
        "--loss_spec_mode spec_mse",
        "train.loss_spec_scale",
        2.0,
    ),
    ("--n_blocks 9", "model.n_blocks", 9),
    ("--input_channels 4", "model.input_channels", 4),
    ("--input_channels 2 --spec_type magnitude", "model.input_channels", 2),
    ("--internal_channels 12", "model.internal_channels", 12),
    *(
        (f"--{place} {name}", f"model.{place}", name)
        for place in ("first_conv_activation", "last_activation")
        for name in ("leaky_relu", "relu", "sigmoid", "tanh", "softmax", "identity")
    ),
    ("--t_down_layers [0,1]", "model.t_down_layers", (0, 1)),
    ("--t_down_layers None", "model.t_down_layers", None),
    ("--f_down_layers 0,2", "model.f_down_layers", (0, 2)),
    ("--spec_type magnitude --spec_est_mode masking --last_activation sigmoid",
     "model.spec_est_mode", "masking"),
    ("--spec_type magnitude --spec_est_mode masking --last_activation relu",
     "model.last_activation", "relu"),
    ("--spec_type complex --spec_est_mode mapping --last_activation identity",
     "model.spec_type", "complex"),
    ("--spec_type complex --spec_est_mode masking --last_activation tanh",
     "model.last_activation", "tanh"),
    ("--bn_factor 8", "model.bn_factor", 8),
    ("--bn_factor None", "model.bn_factor", None),
    ("--min_bn_units 8", "model.min_bn_units", 8),
    ("--block tdf --bias True", "model.bias", True),
    ("--block tdf --tdf_activation tanh", "model.tdf_activation", "tanh"),
    ("--block tdc --tdc_activation tanh", "model.tdc_activation", "tanh"),
    ("--block tdc --n_internal_layers 3 --kernel_size_f 5", "model.kernel_size_f", 5),
    ("--model CUNET_TFC_FiLM --tfc_activation tanh", "model.tfc_activation", "tanh"),
    ("--n_internal_layers 3", "model.n_internal_layers", 3),
    ("--kernel_size_t 5 --kernel_size_f 3", "model.kernel_size_t", 5),
    ("--tfc_tdf_activation tanh", "model.tfc_tdf_activation", "tanh"),
    ("--tfc_tdf_bias False", "model.tfc_tdf_bias", False),
    ("--control_vector_type one_hot_mode", "model.control_vector_type", "one_hot_mode"),
    ("--one_hot_mode True", "model.control_vector_type", "one_hot_mode"),
    ("--one_hot_mode False", "model.control_vector_type", "embedding"),
    ("--embedding_dim 64", "model.embedding_dim", 64),
    *((f"--condition_to {name}", "model.condition_to", name) for name in ("encoder", "full")),
    ("--num_tdfs 16", "model.num_tdfs", 16),
    ("--dk 64", "model.dk", 64),
    ("--control_type per_block", "model.control_type", "per_block"),
    ("--block tfc_lightsaft_v2 --query_listen True", "model.query_listen", True),
    ("--block tfc_lasaft_v2 --key_listen True", "model.key_listen", True),
    ("--initializer kaiming", "model.initializer", "kaiming"),
    ("--norm gn", "model.norm", "gn"),
    ("--scale_activation relu", "model.scale_activation", "relu"),
    ("--block tfc_rnn --num_layers_rnn 2", "model.num_layers_rnn", 2),
    ("--block tdc_rnn --bn_factor_rnn 8", "model.bn_factor_rnn", 8),
    ("--block tfc_rnn --min_bn_units_rnn 8", "model.min_bn_units_rnn", 8),
    ("--control_n_layer 6", "model.control_n_layer", 6),
    ("--pocm_type naive", "model.pocm_type", "naive"),
    ("--pocm_norm None", "model.pocm_norm", None),
    ("--model CUNET_TFC_FiLM --film_type simple", "model.film_type", "simple"),
    ("--model CUNET_TFC_FiLM --gamma_activation relu", "model.gamma_activation", "relu"),
    ("--model CUNET_TFC_FiLM --beta_activation relu", "model.beta_activation", "relu"),
    ("--accumulate_grad_batches 2", "train.accumulate_grad_batches", 2),
    ("--betas 0.5,0.99", "train.betas", (0.5, 0.99)),
    ("--weight_decay 0.01", "train.weight_decay", 0.01),
    ("--optimizer sgd --momentum 0.9", "train.momentum", 0.9),
    ("--min_delta 0.05", "train.min_delta", 0.05),
    ("--gradient_clip_val 0.5", "train.gradient_clip_val", 0.5),
    ("--auto_lr_schedule True --patience 60", "train.auto_lr_schedule", True),
]  # fmt: skip


@pytest.mark.parametrize(("words", "path", "value"), ACCEPTED, ids=[row[0] for row in ACCEPTED])
def test_an_option_of_the_readme_is_accepted(words: str, path: str, value: Any) -> None:
    found = _value(readme_command(*words.split()).config, path)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_network_of_the_readme_is_accepted_and_names_its_folder(name: str) -> None:
    config = readme_command("--model", name, "--run_id", "x").config
    assert config.output_dir == Path.cwd() / "etc" / "checkpoints" / name / "x"
    assert config.model.block == VARIANTS[name]["block"]


REJECTED = [
    ("--problem_name other", "problem_name: got 'other', allowed: conditioned_separation"),
    ("--mode evaluate", "mode: got 'evaluate', allowed: train, eval; did you mean eval"),
    ("--model CUNET_TFC", "model: got 'CUNET_TFC', allowed: CUNET_TFC_FiLM, "),
    ("--log wandb", "log: got 'wandb', allowed: True or False; MLflow is what records here"),
    ("--log tensorboard", "log: got 'tensorboard', allowed: True or False; MLflow"),
    ("--log maybe", "log: got 'maybe', allowed: True or False"),
    ("--musdb_is_wav no", "musdb_is_wav: got 'no', allowed: True or False, or None"),
    ("--target_name piano", "target_names: got 'piano', allowed: vocals, drums, bass, other"),
    ("--target_name bass --target_names bass", "target_name: allowed only without target_names"),
    ("--distributed_backend dp", "distributed_backend: got 'dp', allowed: ddp"),
    ("--gpus -1", "gpus: got '-1', allowed: a whole number of at least 0, or None"),
    ("--gpus 9", "batch_size: got 8, allowed: at least 9"),
    ("--gpus 2 --world_size 2", "world_size: has no effect, because gpus 2"),
    ("--precision 64", "precision: got '64', allowed: 16, bf16, 32"),
    ("--run_id a/b", "run_id: got 'a/b', allowed: a folder name"),
    ("--run_id ..", "run_id: got '..', allowed: a folder name"),
    ("--optimizer adamm", "optimizer: got 'adamm', allowed: adam, adamw, adagrad, sgd, rmsprop"),
    ("--train_loss kl_lr", "train_loss: got 'kl_lr', allowed: spec_l1, "),
    ("--train_loss raw_and_spec", "loss_raw_scale: got None"),
    ("--n_blocks 8", "n_blocks: got 8, allowed: an odd number"),
    ("--num_frame 100", "num_frame: got 100, allowed: a multiple of 8"),
    ("--input_channels 2 --spec_type complex --sources a,b --control_input_dim 3",
     "control_input_dim: got 3, allowed: the number of sources, 2"),
    ("--input_channels 3", "input_channels: got 3, allowed with spec_type complex"),
    ("--first_conv_activation gelu", "first_conv_activation: got 'gelu', allowed: leaky_relu"),
    ("--t_down_layers 3", "t_down_layers: got [3], allowed: different levels from 0 to 2"),
    ("--kernel_size_t 4", "kernel_size_t: got 4, allowed: an odd number"),
    ("--bn_factor 0", "bn_factor: got '0', allowed: a whole number of at least 1, or None"),
    ("--model CUNET_TFC_FiLM --dk 8", "dk: has no effect, because block tfc does not use it"),
    ("--control_type sparse", "control_type: got 'sparse', allowed: dense, per_block"),
    ("--one_hot_mode True --control_vector_type embedding", "one_hot_mode: got True, but"),
    ("--one_hot_mode True --embedding_dim 4", "embedding_dim: has no effect"),
    ("--auto_lr_find True", "auto_lr_find: not offered here"),
    ("--unfreeze_stft_from -1", "unfreeze_stft_from: did nothing in the reference"),
    ("--resume_from_checkpoint x", "resume_from_checkpoint: "),
    ("--rerun train", "rerun: is for jobs.run, which works in steps; here another run_id"),
    ("--repair", "repair: is a flag of jobs.preprocess, and has no effect in jobs.main"),
    ("--output_dir x", "output_dir: is made of ckpt_root_path, model and run_id here"),
    ("--epoch 7", "epoch: has no effect with mode train"),
    ("--overlap_ratio 0.2", "overlap_ratio: has no effect with mode train"),
    ("--filed_mode False --shards_dir s", "shards_dir: allowed only with filed_mode True"),
    ("--filed_mode maybe", "filed_mode: got 'maybe', allowed: True or False"),
    ("--ckpt_root_path=", "ckpt_root_path: got '', allowed: a path"),
    ("--musdb_root /nowhere", "musdb_root: /nowhere does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "problem"), REJECTED, ids=[row[0] for row in REJECTED])
def test_what_is_wrong_is_refused_with_what_is_allowed(words: str, problem: str) -> None:
    assert any(line.startswith(problem) for line in readme_problems(*words.split()))
