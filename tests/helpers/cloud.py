"""A cloud on this machine: Ray's own autoscaler starts hosts when work waits, and ends idle ones.

Ray's fake provider starts nodes that have no memory and one common address; these are hosts with
addresses and folders of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from tests.helpers import ROOT
from tests.helpers.hosts import Hosts

Tags = dict[str, str]
BLIND = "blind"  # the type of nodes on which the folders in the shared one are empty


def start_cloud(
    hosts: Hosts, types: Mapping[str, Mapping[str, float]], idle_seconds: float
) -> None:
    """Start a head without CPUs and without workers, and an autoscaler that may start the others.

    Args:
        hosts: host 0 is the head.
        types: what a node of each type has.
        idle_seconds: after which a node is ended that nobody uses.
    """
    most = hosts.count - 1
    workers = {
        name: {"resources": dict(has), "node_config": {}, "max_workers": most}
        for name, has in types.items()
    }
    known = {"count": hosts.count, "token": hosts.token, "number": hosts.number}
    config = {
        "cluster_name": "cloud",
        "max_workers": most,
        "idle_timeout_minutes": idle_seconds / 60,
        "provider": {
            "type": "external",
            "module": f"{__name__}.Cloud",
            "hosts": known | {"folder": str(hosts.folder), "shared": str(hosts.shared)},
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        }
        | workers,
        "head_node_type": "head",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "worker_setup_commands": [],
        "worker_start_ray_commands": [],
        "upscaling_speed": 1.0,
    }
    file = hosts.folder.with_suffix(".json")
    file.write_text(json.dumps(config))
    hosts.start_ray(
        0, f"--autoscaling-config={file}", AUTOSCALER_UPDATE_INTERVAL_S="1", PYTHONPATH=str(ROOT)
    )


def started(hosts: Hosts) -> Path:
    """Return the file with a line for each node that was started."""
    return hosts.folder.with_suffix(".started")


class Cloud(NodeProvider):
    """Starts and ends hosts for an autoscaler; a node is known by the number of its host."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        known = provider_config["hosts"]
        places = {name: Path(known[name]) for name in ("folder", "shared")}
        self._hosts = Hosts(**{**known, **places})
        head = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: "head"}
        self._nodes: dict[str, Tags] = {"0": head | {TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}}

    def non_terminated_nodes(self, tag_filters: Tags) -> list[str]:
        return [node for node, tags in self._nodes.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._nodes

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._nodes

    def node_tags(self, node_id: str) -> Tags:
        return self._nodes[node_id]

    def set_node_tags(self, node_id: str, tags: Tags) -> None:
        self._nodes[node_id] |= tags

    def internal_ip(self, node_id: str) -> str:
        return self._hosts.ip(int(node_id))

    external_ip = internal_ip

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: Tags,
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        for _ in range(count):
            host = next(n for n in range(1, self._hosts.count) if str(n) not in self._nodes)
            self._nodes[str(host)] = tags | {TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
            blind = tags[TAG_RAY_USER_NODE_TYPE] == BLIND
            empty = " ".join(map(str, self._hosts.shared.iterdir())) if blind else ""
            has = json.dumps(resources)
            self._hosts.start_ray(host, RAY_OVERRIDE_RESOURCES=has, EMPTY=empty)
            with started(self._hosts).open("a") as log:
                log.write(f"{host}\n")

    def terminate_node(self, node_id: str) -> None:
        self._hosts.kill(int(node_id))
        del self._nodes[node_id]

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        return cluster_config
