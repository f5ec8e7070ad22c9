"""The settings of a run: strict, joined by rules, and the same after a way through JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lasaft.card import Licences
from lasaft.cli.help import shown
from lasaft.config import ModelConfig, Settings, option
from lasaft.errors import ConfigError
from lasaft.options import Option, options_of, value_of
from pipeline.config import (
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    addresses,
    from_json,
    to_json,
    without_secrets,
)
from pipeline.config.run import without_effect
from pipeline.training.loop.records import provenance
from tests.helpers import ROOT

OPTIONS = options_of(RunConfig)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,11}", fullmatch=True).filter(
    lambda name: name not in ("none", "null")
)


def _values(option: Option) -> st.SearchStrategy[Any]:
    """Values that the option's own range allows (rules that join options may still refuse them)."""
    low, high = option.low, option.high
    plain: st.SearchStrategy[Any]
    match option.kind:
        case "bool":
            plain = st.booleans()
        case "int":
            plain = st.integers(
                int(low) if low is not None else None, int(high) if high is not None else 2**53
            )
        case "float":
            plain = st.floats(
                low, high, allow_nan=False, allow_infinity=False, exclude_min=option.low_excluded
            )
        case "choice":
            plain = st.sampled_from(option.choices)
        case "ints":
            plain = st.lists(st.integers(0, 30), max_size=4).map(tuple)
        case "floats":
            number = st.floats(low, high, allow_nan=False, allow_infinity=False)
            plain = st.lists(number, min_size=1, max_size=4).map(tuple)
        case "pair":
            plain = st.tuples(*[st.floats(low, high)] * 2)
        case "names":
            plain = st.lists(NAMES, min_size=1, max_size=4).map(tuple)
        case "path":
            plain = NAMES.map(lambda name: Path("/data") / name)
        case "place":
            folders = NAMES.map(lambda name: Path("/data") / name)
            plain = folders | NAMES.map(lambda name: f"s3://bucket/{name}?region=eu-west-1")
        case _:
            plain = NAMES
    return st.none() | plain if option.optional else plain


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.path)
def test_every_value_survives_its_text_form(option: Option) -> None:
    @settings(max_examples=12, deadline=None)
    @given(_values(option))
    def survives(value: Any) -> None:
        text = f"[{shown(value)}]" if value == () else shown(value)
        assert value_of(option, text) == value

    survives()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.data())
def test_every_configuration_survives_its_json_form(data: st.DataObject) -> None:
    tree: dict[str, Any] = {}
    for name in data.draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=8, unique=True)):
        option = OPTIONS[name]
        place = tree.setdefault(option.section, {}) if option.section else tree
        place[name] = data.draw(_values(option), label=name)
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError:
        return  # a rule that joins options
    assert from_json(to_json(config)) == config


def test_the_defaults_fit_together_and_survive_json() -> None:
    assert from_json(to_json(RunConfig())) == RunConfig()


def test_a_configuration_of_an_earlier_version_is_read() -> None:
    tree = json.loads(to_json(RunConfig()))
    tree["search"]["perturb_epochs"] = 2
    assert from_json(json.dumps(tree)) == RunConfig()


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.path)
def test_every_option_says_what_it_means(option: Option) -> None:
    assert 3 < len(option.description) < 130
    assert not option.description.endswith(".")


def test_two_options_of_one_name_are_a_bug() -> None:
    class Twice(Settings):
        lr: float = option(1.0, "a rate")
        train: TrainConfig = TrainConfig()

    with pytest.raises(AssertionError, match="two options are called lr"):
        options_of(Twice)


def test_nothing_can_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().train.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "name", "value", "allowed"),
    [
        ("model", "n_fft", "2048", "a whole number from 16 to 65536"),
        ("model", "n_fft", 2048.0, "a whole number from 16 to 65536"),
        ("model", "n_fft", True, "a whole number from 16 to 65536"),
        ("model", "n_fft", 8, "a whole number from 16 to 65536"),
        ("train", "pin_memory", "yes", "True or False"),
        ("train", "pin_memory", 1, "True or False"),
        ("train", "lr", 0, "a number above 0, up to 10"),
        ("train", "precision", 16, "16, bf16, 32"),
        ("train", "optimizer", "Adam", "adam, adamw, adagrad, sgd, rmsprop; did you mean adam"),
        ("model", "t_down_layers", "0,1", "whole numbers with commas between"),
    ],
)
def test_json_takes_the_exact_type_only(section: str, name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(json.dumps({section: {name: value}}), origin="config.json")
    (problem,) = map(str, caught.value.problems)
    assert problem.startswith(f"config.json: {name}: got {value!r}, allowed: {allowed}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "invalid json"),
        ("[]", "should be an object"),
        ('{"model": 3}', "model: input should be an object"),
        ('{"nfft": 3}', "nfft: no such option; did you mean n_fft"),
        ('{"train": {"n_fft": 3}}', "train.n_fft: no such option; did you mean model.n_fft"),
        ('{"train": {"lr": NaN}}', "lr: got"),
    ],
)
def test_what_is_no_configuration_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        from_json(text)


def test_all_problems_are_told_at_once() -> None:
    text = json.dumps({"model": {"n_fft": "a", "x": 1}, "train": {"lr": -1, "precision": "8"}})
    with pytest.raises(ConfigError) as caught:
        from_json(text)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"train": {"batch_size": 6, "world_size": 7}}, "batch_size: got 6, allowed: at least 7"),
        ({"train": {"batch_size": 6, "gpus": 7}}, "batch_size: got 6, allowed: at least 7"),
        (
            {"train": {"batch_size": 8, "world_size": 2, "accumulate_grad_batches": 3}},
            "a multiple of accumulate_grad_batches (3)",
        ),
        ({"train": {"batch_size": 6, "world_size": 4}}, "8 in all"),
        ({"train": {"min_epochs": 5, "max_epochs": 4}}, "min_epochs: got 5, allowed: at most"),
        ({"train": {"auto_lr_schedule": True, "lr_schedule": "cosine"}}, "auto_lr_schedule"),
        ({"train": {"train_loss": "raw_and_spec"}}, "loss_spec_mode: got None"),
        ({"train": {"val_loss": "raw_and_spec", "loss_raw_scale": 1.0}}, "loss_raw_mode: got"),
        ({"train": {"target_names": ("drum",)}}, "target_names: got 'drum', allowed: vocals"),
        ({"train": {"target_names": ()}}, "one source or more"),
        ({"train": {"target_names": ("bass", "bass")}}, "each once"),
        ({"train": {"batch_size": 1}}, "batch_size: got 1, allowed: at least 2 windows"),
        ({"train": {"batch_size": 4, "world_size": 4}}, "8 in all"),
        ({"data": {"set_sizes": (0.0, 0.0)}}, "set_sizes: got [0.0, 0.0], allowed: 1 to 4 chances"),
        (
            {"data": {"set_sizes": (1.0,) * 3}, "train": {"target_names": ("bass", "drums")}},
            "set_sizes: got [1.0, 1.0, 1.0], allowed: 1 to 2 chances (of sets of 1 to 2 of the",
        ),
        ({"tracking": {"run_id": "../up"}}, "run_id: got '../up', allowed: a folder name"),
        ({"tracking": {"run_id": ""}}, "run_id: got ''"),
        ({"model": {"n_blocks": 6}}, "n_blocks: got 6"),
        ({"model": {"num_frame": 100}}, "num_frame: got 100"),
        ({"model": {"spec_type": "magnitude", "input_channels": 4}}, "input_channels: got 4"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(tree: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(problem)):
        RunConfig.model_validate(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"train": {"batch_size": 1}, "model": {"block": "tfc", "modulation": "none"}},
        {"train": {"batch_size": 1}, "model": {"pocm_norm": None, "control_n_layer": 2}},
        {"train": {"batch_size": 1}, "model": {"modulation": "film", "control_n_layer": 2}},
        {"train": {"batch_size": 2, "world_size": 2, "sync_batchnorm": True}},
        {"train": {"batch_size": 1}, "model": {"control_type": "per_block"}},
    ],
)
def test_one_window_a_process_is_fine_where_nothing_normalises_over_one(
    tree: dict[str, Any],
) -> None:
    assert RunConfig.model_validate(tree).train.batch_size <= 2


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (RunConfig(model=ModelConfig(block="tfc")), "num_tdfs"),
        (RunConfig(model=ModelConfig(control_type="per_block")), "control_n_layer"),
        (RunConfig(model=ModelConfig(control_type="per_block")), "pocm_norm"),
        (RunConfig(model=ModelConfig(n_blocks=1)), "scale_activation"),
        (RunConfig(), "key_listen"),
        (RunConfig(model=ModelConfig(block="tfc_lasaft_v2", n_blocks=1)), "num_tdfs"),
        (RunConfig(data=DataConfig(musdb_root=Path("/m"))), "synthetic_train"),
        (RunConfig(), "synthetic_seconds"),
        (RunConfig(), "gain_db"),
        (RunConfig(), "set_sizes"),
        (RunConfig(), "loss_raw_scale"),
        (RunConfig(train=TrainConfig(gpus=2)), "world_size"),
        (RunConfig(), "momentum"),
        (RunConfig(train=TrainConfig(optimizer="sgd")), "betas"),
        (RunConfig(train=TrainConfig(patience=51, min_epochs=52)), "auto_lr_schedule"),
        (RunConfig(tracking=TrackingConfig(log=False)), "tracking_uri"),
        (RunConfig(evaluate=EvaluateConfig(estimates_dir=Path("/e"))), "overlap_ratio"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_option_without_effect_is_known_with_its_reason(config: RunConfig, name: str) -> None:
    problem = without_effect(config)[name]
    assert str(problem).startswith(f"{name}: has no effect, because ")
    assert problem.others


def test_options_with_effect_are_not_called_idle() -> None:
    config = RunConfig(
        data=DataConfig(gain_probability=0.5, synthetic_train=1),
        train=TrainConfig(world_size=2, batch_size=8, patience=52),
    )
    idle = without_effect(config)
    used = {"gain_db", "synthetic_seconds", "sync_batchnorm", "world_size", "betas"}
    assert not {"auto_lr_schedule", *used} & idle.keys()
    long = RunConfig(train=TrainConfig(min_epochs=53, optimizer="sgd"))
    assert not {"auto_lr_schedule", "momentum"} & without_effect(long).keys()


@pytest.mark.parametrize(("gpus", "world_size", "processes"), [(None, 3, 3), (2, 3, 2), (0, 3, 3)])
def test_gpus_says_how_many_processes_there_are(
    gpus: int | None, world_size: int, processes: int
) -> None:
    train = TrainConfig(gpus=gpus, world_size=world_size, batch_size=6)
    assert train.processes == processes


def test_every_option_is_read_by_some_stage() -> None:
    """An option that no stage reads would be a silence."""
    own = {"checks.py", "options.py"}
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("lasaft", "pipeline", "jobs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name not in own and "cli" not in path.relative_to(ROOT).parts
    )
    # A word of the README with a single allowed value cannot change anything.
    chosen = [n for n, option in OPTIONS.items() if len(option.choices) != 1 or option.optional]
    together = Licences.model_fields  # read as one
    unread = [n for n in chosen if n not in together and not re.search(rf"\.{n}\b", code)]
    assert unread == []


@pytest.mark.timeout(20)
def test_a_file_of_very_many_unknown_options_is_told_in_part() -> None:
    text = json.dumps({f"k{number}": 1 for number in range(70_000)})
    with pytest.raises(ConfigError) as caught:
        from_json(text)
    assert len(caught.value.problems) == 1001
    assert str(caught.value).endswith("and 69000 more")


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("http://u:geheim@h:1/x", "http://h:1/x"),
        ("https://u:ge@heim@h", "https://h"),
        ("postgresql+psycopg://u:geheim@h/b?sslmode=a", "postgresql+psycopg://h/b?sslmode=a"),
        ("mysql://h/b?user=u&password=geheim", "mysql://h/b?user=u&password="),
        ("mysql://u:ge/he?i#m@h/b", "mysql://h/b"),
        ("mysql://u:12/geheim@h/b", "mysql://h/b"),
        ("http://u:pa/geheim@h/b", "http://h/b"),
        ("http://h:5000/team@b", "http://h:5000/team@b"),
        ("mysql://u:'ge\"geheim<@h/b", "mysql://h/b"),
        ("http://h:1/x?key=geheim&region=eu", "http://h:1/x?key=&region=eu"),
        ("http://h/x?api_key=geheim", "http://h/x?api_key="),
        ("https://h/x?sv=1&sig=geheim%3D", "https://h/x?sv=&sig="),
        ("https://h/x?X-Amz-Signature=geheim", "https://h/x?X-Amz-Signature="),
        ("https://h/x#access_token=geheim&scheme=a", "https://h/x#access_token=&scheme=a"),
        ("https://h/x?geheim", "https://h/x?"),
        ("mssql://h/b;password=geheim", "mssql://h/b;password="),
        ("mssql:///?odbc_connect=DRIVER%3D{A}%3BPWD%3Dgeheim", "mssql:///?odbc_connect="),
        ("s3://b/x?endpoint_override=http%3A%2F%2Fu%3Ageheim%40h", "s3://b/x?endpoint_override="),
        ("s3://b/x?endpoint_override=h:1&scheme=a", "s3://b/x?endpoint_override=h:1&scheme=a"),
        ("http://u:ge heim@h:1", "http://h:1"),
        ("mysql://u:ge\theim geheim@h/b", "mysql://h/b"),
        ("sqlite:////data/a b/c d.db", "sqlite:////data/a b/c d.db"),
        ("sqlite:////data/a@b.db", "sqlite:////data/a@b.db"),
        (None, None),
    ],
)
def test_no_secret_of_an_address_is_written_to_files(address: str | None, kept: str | None) -> None:
    config = RunConfig(tracking=TrackingConfig(tracking_uri=address))
    config = config.model_copy(update={"cluster": ClusterConfig(address=address)})
    safe = without_secrets(config)
    assert (safe.tracking.tracking_uri, safe.cluster.address) == (kept, kept)
    assert not re.search("ge.*heim", to_json(safe))
    assert provenance(config, "data")["config"]["tracking"]["tracking_uri"] == kept
    assert from_json(to_json(safe)) == safe


def test_secrets_are_left_out_of_what_others_say_and_nothing_else() -> None:
    said = "failed with url: /api?token=geheim (at 'http://u:geheim@h:1/a?b=c', see a;b=c #3, x=1)"
    kept = "failed with url: /api?token= (at 'http://h:1/a?b=', see a;b=c #3, x=1)"
    assert addresses.shown(said) == kept


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", ["x", "://", "a@://", "?", ";a=", "://a:b@", "=&"])
def test_a_long_text_is_looked_through_soon(part: str) -> None:
    addresses.shown(part * 100_000)
