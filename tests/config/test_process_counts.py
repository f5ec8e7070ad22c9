"""How many processes train and what each holds: what is allowed, and what fits."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.cli import parse
from lasaft.errors import ConfigError
from pipeline.cluster.resources import room
from pipeline.config import RunConfig, TrainConfig, from_json, to_json


def _train(**options: Any) -> TrainConfig:
    return TrainConfig.model_validate({"batch_size": 8} | options)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"world_size": 3}, (3, 3)),
        ({"world_size": "1:4"}, (1, 4)),
        ({"world_size": "2:100", "batch_size": 12}, (2, 12)),
        ({"world_size": "1:8", "accumulate_grad_batches": 2}, (1, 4)),
        ({"world_size": "3:3", "batch_size": 9}, (3, 3)),
        ({"world_size": "1:4", "gpus": 2}, (2, 2)),
    ],
)
def test_a_range_ends_where_each_process_has_one_window_of_a_micro_batch(
    options: dict[str, Any], sizes: tuple[int, int]
) -> None:
    train = _train(**options)
    assert train.world_sizes == sizes
    assert train.processes == sizes[-1]


@pytest.mark.parametrize("text", ["0", "2:1", "0:2", "1:", ":2", "1:2:3", "a", "-1:2", "1 : 2"])
def test_what_is_no_number_of_processes_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match=r"world_size: got .*allowed: a whole number.*1:4"):
        _train(world_size=text)
    with pytest.raises(ValidationError, match="world_size: got 0"):
        _train(world_size=0)


@pytest.mark.parametrize("options", [{"world_size": 9}, {"gpus": 9}, {"world_size": "9:12"}])
def test_more_processes_than_windows_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"batch_size: got 8, allowed: at least 9.*processes"):
        _train(**options)
    with pytest.raises(ValidationError, match="batch_size: got 16, allowed: at least 18"):
        _train(**options, batch_size=16, accumulate_grad_batches=2)


@pytest.mark.parametrize(
    "text", ["CPU", "CPU=0", "CPU=-1", "CPU=two", "CPU=1,CPU=2", "=1", "CPU=1;GPU=1", "CPU=1,"]
)
def test_what_names_no_resources_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match=r"resources_per_worker: got .*such as CPU=2,GPU=1"):
        _train(resources_per_worker=text)


def test_a_process_trains_on_one_gpu() -> None:
    assert _train(resources_per_worker="GPU=1").resources == {"GPU": 1.0}
    for amount in ("2", "0.5"):
        with pytest.raises(ValidationError, match="allowed: GPU=1 or no GPU"):
            _train(resources_per_worker=f"CPU=1,GPU={amount}")


def test_both_are_the_same_on_the_command_line_in_yaml_and_in_json(tmp_path: Any) -> None:
    songs = ["--musdb_root", str(tmp_path), "--batch_size", "8"]
    words = ["--world_size", "1:4", "--resources_per_worker", "CPU=2,big_node=0.5"]
    config = parse([*songs, *words], "run").config
    preset = tmp_path / "own.yaml"
    preset.write_text("train:\n  world_size: 1:4\n  resources_per_worker: CPU=2,big_node=0.5\n")
    assert parse([*songs, "--preset", str(preset)], "run").config == config
    assert from_json(to_json(config)) == config
    assert config.train.resources == {"CPU": 2.0, "big_node": 0.5}
    assert isinstance(parse([*songs, "--world_size", "2"], "run").config.train.world_size, int)
    with pytest.raises(ConfigError, match="world_size: got '1-4'"):
        parse([*songs, "--world_size", "1-4"], "run")


def test_room_is_counted_node_by_node() -> None:
    nodes = [{"CPU": 3.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert room(nodes, {"CPU": 2.0}) == 3
    assert room(nodes, {"CPU": 1.0, "GPU": 1.0}) == 1
    assert room(nodes, {"CPU": 5.0}) == 0


def test_one_window_a_process_is_looked_at_for_the_most_processes() -> None:
    with pytest.raises(ValidationError, match="at least 2 windows for each process"):
        RunConfig(train=_train(world_size="1:8"))
    with pytest.raises(ValidationError, match=r"at least 2 windows .*\(10 in all\)"):
        RunConfig(train=_train(world_size=5))  # shares of 2, 2, 2, 1 and 1
    assert RunConfig(train=_train(world_size="1:4")).train.processes == 4
    assert RunConfig(train=_train(world_size="1:8", sync_batchnorm=True)).train.processes == 8
