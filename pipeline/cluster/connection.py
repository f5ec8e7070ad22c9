"""The connection to Ray: a quiet cluster on this machine, or one that runs already."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lasaft.errors import ConfigError, Problem, StageError
from lasaft.interrupts import held
from pipeline.cluster.address import ALLOWED, named_address, require_cluster
from pipeline.cluster.machine import prepare_machine
from pipeline.cluster.progress import say
from pipeline.config import ClusterConfig

# Ray reads these when it is imported or when its workers start. Reports are paced by the
# controller's poll: 0.2 s loses only the current epoch when a worker dies. A poll whose answer was
# lost with a link is waited for 60 s, not 10 minutes. Workers started in advance would never be
# used: whatever we run has an environment of its own. What was killed for memory we try again: Ray
# would do so for ever, with a page of text each time.
_QUICK_AND_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_task_oom_retries": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# For a cluster on this machine alone. By the first, Ray takes this system for one on which it
# makes no clusters, as macOS, and binds every port to loopback. The others close its Prometheus
# ports, which want no token: -1 is no port.
_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}


def prepare_environment(config: ClusterConfig) -> None:
    """Set Ray's defaults that are not set yet; call before ``ray`` is imported."""
    local = named_address(config) is None
    for name, value in (_QUICK_AND_QUIET | (_LOOPBACK if local else {})).items():
        os.environ.setdefault(name, value)


@contextmanager
def connected(config: ClusterConfig, purpose: str = "to work") -> Iterator[None]:
    """Be connected to Ray inside the ``with``; a connection that exists already is used as it is.

    Args:
        config: says where the cluster is.
        purpose: for people, what it is needed for.

    Raises:
        ConfigError: no cluster answers at ``address``, or it does not let this machine in; or Ray
            cannot start on this machine.
    """
    prepare_environment(config)
    import ray

    if ray.is_initialized():
        yield
        return
    address = named_address(config)
    if address is None:
        prepare_machine()
    else:
        require_cluster(address)
    try:
        # Inside Ray's native start-up, Ctrl-C can end in a crash.
        say(f"Ray: {f'joining {address}' if address else 'starting on this machine'} {purpose} ...")
        begin = time.monotonic()
        with held():
            dashboard = _connect(address, config)
        say(f"Ray: there after {time.monotonic() - begin:.1f} s")
        if address is None and dashboard:
            token = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
            say(f"Ray: dashboard at http://{dashboard}; it asks for the token in {token}")
        yield
    finally:
        with held():
            ray.shutdown()


def living_nodes() -> list[dict[str, Any]]:
    """Return what Ray knows of each node of the cluster that is alive; call while connected."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def resources_of_nodes() -> list[dict[str, float]]:
    """Return what each living node has, by the names that Ray knows; call while connected."""
    return [node["Resources"] for node in living_nodes()]


def _connect(address: str | None, config: ClusterConfig) -> str:
    """Join the cluster at the address, or start one here; return where its dashboard is, or "".

    Ray gives its own processes 30 s to start, with no setting for it. On a machine that is busy
    with other work this may be too short, and they are up soon after: so it is tried twice.
    """
    import ray

    for last in (False, True):
        try:
            context = ray.init(
                address=address or "local",
                num_cpus=None if address else config.num_cpus,
                include_dashboard=None if address else config.dashboard,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except Exception as error:
            if address:  # it is lost just now, or has another version of Ray
                reason = f"Ray cannot join it: {' '.join(str(error).split())}"
                raise ConfigError(
                    Problem("address", repr(address), ALLOWED, reason=reason)
                ) from error
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if last:
                raise StageError(
                    "Ray did not start on this machine within two times 30 s: it is too busy, or "
                    "its memory or its disk (/tmp) is full; the same command goes on from here"
                ) from error
        else:
            return context.dashboard_url or ""
    raise AssertionError("the last try returns or raises")
