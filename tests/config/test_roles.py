"""Every option says once what it decides; identity, recipe, steps and search follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lasaft.config import ModelConfig
from lasaft.options import sections_of
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.config.roles import (
    ROLES,
    Change,
    all_options,
    changes,
    identity,
    is_searched,
    names,
    recipe_of,
    values,
)
from pipeline.data.shards.manifest import ShardSettings

# A new option is a decision: of those who use the program, and about its role.
OPTIONS = {
    "place": """
        output_dir add data.musdb_root data.shards_dir data.cache_dir data.synthetic_train
        data.synthetic_valid data.synthetic_test data.synthetic_seconds data.synthetic_seed
        evaluate.checkpoint evaluate.estimates_dir evaluate.scores_dir tracking.tracking_uri
        tracking.experiment_name cluster.address
    """,
    "shards": """
        model.sources model.sample_rate model.n_fft model.hop_length model.input_channels
        model.control_input_dim
    """,
    "result": """
        model.num_frame model.spec_type model.spec_est_mode model.block model.n_blocks
        model.internal_channels model.n_internal_layers model.kernel_size_t
        model.kernel_size_f model.t_down_layers model.f_down_layers
        model.norm model.first_conv_activation model.scale_activation
        model.last_activation model.initializer model.tfc_activation
        model.tfc_tdf_activation model.tdf_activation model.tdc_activation model.bn_factor
        model.min_bn_units model.num_layers_rnn model.bn_factor_rnn
        model.min_bn_units_rnn model.tfc_tdf_bias model.bias model.num_tdfs model.dk
        model.query_listen model.key_listen
        model.modulation model.condition_to model.control_vector_type model.embedding_dim
        model.control_type model.control_n_layer model.film_type model.gamma_activation
        model.beta_activation model.pocm_type model.pocm_norm train.batch_size
        train.train_loss train.loss_raw_scale train.loss_raw_mode train.loss_spec_scale
        train.loss_spec_mode train.optimizer train.lr train.weight_decay train.momentum
        train.betas train.auto_lr_schedule
        train.lr_schedule train.warmup_steps train.gradient_clip_val
        train.accumulate_grad_batches train.ema_decay train.precision train.sync_batchnorm
        search.space search.searcher search.scheduler search.objectives search.trial_epochs
        search.grace_epochs search.reduction_factor search.search_seed evaluate.split
        evaluate.overlap_ratio evaluate.save_estimates evaluate.verify evaluate.oracles
        evaluate.separator evaluate.separator_minutes
        evaluate.scores_kind evaluate.scores_data evaluate.scenario evaluate.sums evaluate.rescore
        evaluate.report_audio evaluate.single_file
        tracking.run_id
    """,
    "songs": """
        data.musdb_is_wav data.layout data.resample data.missing_stems data.length_tolerance
        data.max_frames_per_shard data.phases data.dev_mode
    """,
    "way": """
        data.cache_gb data.filed_mode train.compile train.activation_checkpointing
        train.deterministic train.save_top_k train.save_weights_only train.mid_epoch_seconds
        train.sample_every_epochs train.world_size train.gpus train.resources_per_worker
        train.distributed_backend train.validation_resources train.max_failures
        train.num_workers train.pin_memory
        search.max_concurrent_trials search.trial_gpus evaluate.score_device
        tracking.weights_license tracking.data_license tracking.log
        cluster.num_cpus cluster.dashboard cluster.task_memory cluster.wait_for_nodes_minutes
    """,
    "draw": """
        data.draw data.set_sizes data.silent_target_weight data.remix_probability
        data.gain_probability data.gain_db
        data.polarity_probability data.channel_swap_probability data.mixup_probability
        data.mixup_share
    """,
    "task": """
        data.val_mixture train.target_names train.steps_per_epoch train.val_loss
        train.resume_from_checkpoint train.validation
    """,
    "ending": """
        train.min_epochs train.max_epochs train.patience train.min_delta
    """,
    "limit": """
        train.time_limit_hours search.num_trials search.total_epochs search.max_hours
        search.max_gpu_hours search.seeds search.top_settings
    """,
    "seed": """
        train.seed
    """,
}


def test_the_options_and_their_roles_are_those_decided_on() -> None:
    found: dict[str, list[str]] = {}
    for option in all_options().values():
        found.setdefault(option.role, []).append(option.path)
    assert found == {role: text.split() for role, text in OPTIONS.items()}


def test_every_field_of_every_group_has_a_role() -> None:
    for section, group in {"": RunConfig, **sections_of(RunConfig)}.items():
        for name, field in group.model_fields.items():
            if section or name not in sections_of(RunConfig):
                extra = field.json_schema_extra
                assert isinstance(extra, dict), name
                assert extra["role"] in ROLES, name


def test_an_identity_holds_what_decides_a_training_and_nothing_else() -> None:
    roles = {all_options()[path.partition(".")[2]].role for path in identity(RunConfig())}
    assert roles == {"result", "draw", "task", "shards", "seed"}
    free = {"train.max_epochs", "train.world_size", "train.gpus", "train.compile", "data.cache_gb"}
    assert not free & identity(RunConfig()).keys()


def test_the_end_of_a_training_is_part_of_it_where_the_rate_depends_on_it() -> None:
    cosine = RunConfig(train=TrainConfig(lr_schedule="cosine", max_epochs=7))
    assert identity(cosine)["train.max_epochs"] == 7


def test_what_shards_are_made_with_has_the_role_shards() -> None:
    of_songs = {"format", "channels", "max_frames_per_shard", "phases"}
    settings = set(ShardSettings.model_fields) - of_songs
    assert settings <= set(names("shards"))


def test_a_search_varies_what_decides_a_result_and_shares_the_task() -> None:
    searched = {option.name for option in all_options().values() if is_searched(option)}
    assert {"lr", "batch_size", "modulation", "spec_type", "remix_probability"} <= searched
    assert not {"val_loss", "val_mixture", "n_fft", "seed", "compile", "split"} & searched


def _record(**options: Any) -> dict[str, Any]:
    tree = RunConfig().model_dump(mode="json")
    for name, value in options.items():
        tree[all_options()[name].section][name] = value
    return {"config": tree, "data_hash": "d"}


@pytest.mark.parametrize("name", [*names("way"), "seed", "time_limit_hours"])
def test_seeds_that_differ_in_how_they_were_trained_are_one_group(name: str) -> None:
    if all_options()[name].section in ("train", "data"):
        assert recipe_of(_record(**{name: "another"})) == recipe_of(_record())


@pytest.mark.parametrize("name", ["lr", "max_epochs", "patience", "draw", "val_loss", "dk"])
def test_networks_of_other_settings_are_no_group(name: str) -> None:
    assert recipe_of(_record(**{name: "another"})) != recipe_of(_record())


def test_a_record_of_before_an_option_was_there_has_its_default() -> None:
    record = _record()
    del record["config"]["train"]["ema_decay"]
    assert recipe_of(record) == recipe_of(_record())


def test_changes_compare_what_the_record_does_not_say_with_the_default() -> None:
    now = {"lr": 0.001, "dk": 32, "version": 1}
    assert changes({"lr": 0.001, "code": "ab"}, now, RunConfig()) == []
    assert changes({"lr": 0.002}, now, RunConfig()) == [Change("lr", 0.002, 0.001)]
    changed = now | {"dk": 16}
    config = RunConfig(model=ModelConfig(dk=16))
    assert changes({"lr": 0.001}, changed, config) == [Change("dk", 32, 16)]


def test_changes_ignore_what_decides_nothing_and_options_that_are_gone() -> None:
    before = {"compile": True, "world_size": 4, "perturb_epochs": 2, "max_epochs": 3}
    assert changes(before, {"lr": 0.001}, RunConfig()) == []


def test_changes_count_an_old_option_by_its_value_of_today() -> None:
    before = {"options": 0, "spec_type": "magnitude"}
    found = changes(before, {"channels": 2}, RunConfig())
    assert found == [Change("spec_type", "magnitude", "complex")]


@pytest.mark.parametrize(
    ("path", "value", "another"),
    [
        ("train.target_names", ["vocals", "drums", "bass", "other"], ["vocals"]),
        ("model.input_channels", 4, 2),
        ("model.control_input_dim", 4, None),
        ("model.last_activation", "identity", "tanh"),
        ("model.t_down_layers", [0, 1, 2], [0]),
        ("model.f_down_layers", [0, 1, 2], [0]),
    ],
)
def test_none_is_the_same_as_what_it_becomes(path: str, value: Any, another: Any) -> None:
    left_out = identity(RunConfig())
    given = left_out | {path: value}
    assert changes(left_out, given, RunConfig()) == changes(given, left_out, RunConfig()) == []
    found = changes(given, left_out | {path: another}, RunConfig())
    assert [one.name for one in found] == ([path.partition(".")[2]] if another else [])


def test_a_change_that_gives_none_another_meaning_is_told_alone() -> None:
    config = RunConfig(model=ModelConfig(spec_type="magnitude"))
    found = changes(identity(RunConfig()), identity(config), config)
    assert found == [Change("spec_type", "complex", "magnitude")]


def test_a_training_that_covered_no_targets_is_another_one() -> None:
    config = RunConfig(data=DataConfig(draw="coverage"))
    (found,) = changes(identity(config) | {"data.draw": "coverage"}, identity(config), config)
    assert found == Change("draw", "coverage", "coverage of targets")
    assert identity(RunConfig())["data.draw"] == "iid"


def test_a_start_counts_by_its_weights_wherever_they_are(tmp_path: Path) -> None:
    def started(path: Path) -> tuple[RunConfig, dict[str, Any]]:
        config = RunConfig(train=TrainConfig(resume_from_checkpoint=path))
        return config, identity(config)

    for place, file in (("a.ckpt", "a.ckpt"), ("checkpoint", "checkpoint/weights.safetensors")):
        first, weights = tmp_path / place, tmp_path / file
        weights.parent.mkdir(exist_ok=True)
        weights.write_bytes(b"one")
        _, before = started(first)
        moved = first.rename(tmp_path / f"moved-{place}")
        config, now = started(moved)
        assert changes(before, now, config) == []
        weights = tmp_path / f"moved-{file}"
        weights.write_bytes(b"another")
        before, now = now, started(moved)[1]
        (found,) = changes(before, now, config)
        assert found.name == "resume_from_checkpoint"
        assert found.before == f"{moved} (7692c3ad3540)"
        assert found.now.startswith(f"{moved} (")
        # Where one side does not know them (a record of before, a file that is gone), paths count.
        del before["weights of resume_from_checkpoint"]
        assert changes(before, now, config) == []
        config, gone = started(first)
        (found,) = changes(before, gone, config)
        assert (found.before, found.now) == (str(moved), str(first))


def test_values_are_those_of_one_group_and_role() -> None:
    assert values(RunConfig(), "train", "seed") == {"seed": 2020}
