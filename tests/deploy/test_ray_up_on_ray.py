"""The autoscaler that ``ray up`` leaves on the head, against AWS as moto plays it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import NEW_SHELL
from tests.helpers.aws import Aws, aws, ray_up
from tests.helpers.own_cluster import own_cluster

_ASK = """
import sys, time, ray
from ray.autoscaler.sdk import request_resources
ray.init(sys.argv[1], log_to_driver=False)
request_resources(bundles=[eval(word) for word in sys.argv[2:]])
"""


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[tuple[Aws, Callable[..., None]]]:
    """A cluster whose head is there, and what asks it for nodes."""
    with aws(tmp_path) as place:
        ray_up(place)
        settings = place.settings | {"HOME": str(place.node), "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        settings |= {"RAY_CLOUD_INSTANCE_ID": place.instances()[0]["InstanceId"]}
        settings |= {"RAY_NODE_TYPE_NAME": "head", "RAY_OVERRIDE_RESOURCES": '{"CPU": 0}'}
        config = f"--autoscaling-config={place.node / 'ray_bootstrap_config.yaml'}"
        with own_cluster(config, **settings) as cluster:

            def request(*bundles: dict[str, float]) -> None:
                words = [sys.executable, "-c", _ASK, cluster.address, *map(str, bundles)]
                subprocess.run(words, env=NEW_SHELL | cluster.settings, check=True, timeout=120)

            yield place, request


def _workers(place: Aws, count: int) -> list[dict[str, Any]]:
    """Wait for workers and return them."""
    end = time.monotonic() + 90
    while len(found := place.instances()[1:]) < count:
        assert time.monotonic() < end, found
        time.sleep(0.5)
    return found


def _types(workers: list[dict[str, Any]]) -> list[str]:
    return sorted(worker["Tags"]["ray-user-node-type"] for worker in workers)


def _is_spot(worker: dict[str, Any]) -> bool:
    return worker.get("InstanceLifecycle") == "spot"


def test_work_brings_the_nodes_that_it_fits_and_on_demand_ones_where_there_are_no_spot_ones(
    ask: tuple[Aws, Callable[..., None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models import instances

    place, request = ask
    request({"CPU": 1})
    workers = _workers(place, 1)
    assert _types(workers) == ["cpu"]
    assert all(map(_is_spot, workers))
    assert all(one["IamInstanceProfile"]["Arn"].endswith("/lasaft-worker") for one in workers)

    run = instances.InstanceBackend.run_instances

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("instance_market_options"):
            raise EC2ClientError("InsufficientInstanceCapacity", "there is none")
        return run(self, *args, **kwargs)

    monkeypatch.setattr(instances.InstanceBackend, "run_instances", refuse)
    request({"CPU": 1}, {"GPU": 1})
    workers = _workers(place, 2)
    assert _types(workers) == ["cpu", "gpu"]
    (gpu,) = [one for one in workers if one["Tags"]["ray-user-node-type"] == "gpu"]
    assert not _is_spot(gpu)
    assert gpu["InstanceType"] == "g5.4xlarge"
